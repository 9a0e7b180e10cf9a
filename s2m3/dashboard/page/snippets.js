// The playground's request as lines for a shell and for Python. They run as they are, in the folder of the named file.

const SAMPLES = { image: "frame.jpg", audio: "sound.wav" };
const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;
const isPlain = (text) => /^[\w./-]+$/.test(text);

// What a form holds, or a sample of it: a file's name, or the text or texts.
function given(inputs, form) {
  return Object.entries(inputs).flatMap(([input, { kind, optional }]) => {
    if (kind === "text") {
      const lines = form(input) ?? (optional ? [] : ["a text"]);
      return lines.length ? [{ input, text: lines.length === 1 ? lines[0] : lines }] : [];
    }
    const file = form(input) ?? SAMPLES[kind] ?? "input.bin";
    return [{ input, file: isPlain(file) ? file : SAMPLES[kind] ?? "input.bin" }];
  });
}

// JSON whose files a shell fills in, as one quoted word.
function jsonWord(values) {
  let word = "", text = "{";
  for (const [place, { input, file, text: said }] of values.entries()) {
    text += `${place ? ", " : ""}${JSON.stringify(input)}: `;
    if (!file) { text += JSON.stringify(said); continue; }
    word += `${quote(`${text}"`)}"$(base64 < ${file} | tr -d '\\n')"`;
    text = '"';
  }
  return word + quote(`${text}}`);
}

function pythonOf(value) {
  return value.file ? `Path(${JSON.stringify(value.file)})` : JSON.stringify(value.text);
}

// The lines by their tool. `form` gives the texts or the file's name of an input; undefined where there are none yet.
export function snippets({ broker, prefix, login }, task, inputs, form) {
  const values = given(inputs, form), file = values.length === 1 && values[0].file;
  const address = new URL(broker.replace(/^mqtts?:/, "http:")), isSecure = broker.startsWith("mqtts:");
  const site = prefix === "s2m3/v1" ? "" : prefix.slice(0, -"/s2m3/v1".length);
  const client = login ? "NAME" : "me", answer = `${prefix}/clients/${client}/results/1`;
  const to = `-V 5 -h ${address.hostname.replace(/[[\]]/g, "")} -p ${address.port || (isSecure ? 8883 : 1883)} -q 1`;
  const files = isSecure ? " --cafile ca.crt --cert client.crt --key client.key" : "";
  // An account is bound to one client id, so that its clients run one after the other, and the broker keeps the answer.
  const account = login ? ` -i ${client} -u ${client} -P "$(cat password)"${files} -c -x 60` : "";
  const topic = `-t ${prefix}/tasks/${task}/requests/${client}/1`;
  const send = (options) => file ? `mosquitto_pub ${options} ${topic} -f ${file}` : `printf %s ${jsonWord(values)} |\n  mosquitto_pub ${options} ${topic} -s`;
  const waiting = `-t ${answer} -C 1 -W 30`;
  const shell = login
    ? `# in the folder of an account that may ask; NAME is its name\nmosquitto_sub ${to}${account} -t ${answer} -E\n${send(to + account)}\nmosquitto_sub ${to}${account} ${waiting}`
    : `(mosquitto_sub ${to} ${waiting} & sleep 1\n ${send(to)}; wait)`;
  const where = login ? " --connection connection.yaml" : ` --broker ${broker}${site ? ` --site ${site}` : ""}`;
  const body = file ? `--data-binary @${file}` : values.map((each) => each.file ? `-F ${each.input}=@${each.file}` : `--form-string ${quote(`${each.input}=${[each.text].flat().join("\n")}`)}`).join(" ");
  const named = values.map((each) => /^[a-z_][a-z0-9_]*$/.test(each.input) ? `${each.input}=${pythonOf(each)}` : `**{${JSON.stringify(each.input)}: ${pythonOf(each)}}`);
  return {
    mosquitto_pub: shell,
    curl: `# the door for HTTP must run: s2m3 http${where}\ncurl ${body} http://127.0.0.1:8080/v1/tasks/${task}`,
    Python: `${login ? "# the account in S2M3_USER, S2M3_PASSWORD_FILE, S2M3_CA, S2M3_CERT and S2M3_KEY\n" : ""}from pathlib import Path\nfrom s2m3 import Client\n\nclient = Client("${broker}"${site ? `, site="${site}"` : ""})\nprint(client.ask(${[`"${task}"`, ...named].join(", ")}))`,
  };
}
