# Never reads its standard input.
echo '{"type":"ready"}'
exec sleep 300
