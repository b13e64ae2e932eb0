# Ready, and waits to be ended; ends with its standard input.
echo '{"type":"ready"}'
exec cat >/dev/null
