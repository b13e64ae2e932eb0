# Leaves its group, by a session of its own; the daemon holds the pipes open.
setsid sleep 300 &
echo '{"type":"ready"}'
cat >/dev/null
