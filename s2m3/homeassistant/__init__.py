"""Home Assistant: the devices and sources of a site as entities, by its discovery over MQTT."""
