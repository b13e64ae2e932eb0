# A daemon that holds the standard input open, and does not read it.
exec 3<&0
setsid sleep 300 <&3 &
exec 3<&-
echo '{"type":"ready"}'
exec sleep 300
