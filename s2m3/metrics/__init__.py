"""The site's figures for Prometheus: one exporter, which reads what the site's processes publish for people."""
