# Ignores SIGTERM, and so do its children.
trap '' TERM
echo '{"type":"ready"}'
while :; do sleep 60; done
