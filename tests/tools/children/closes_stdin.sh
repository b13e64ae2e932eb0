# Takes nothing more.
exec <&-
echo '{"type":"ready"}'
exec sleep 300
