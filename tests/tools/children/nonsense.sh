# Everything that is no line of the protocol, and then one that is.
echo
echo 'Loading model...'
echo '{"type":"output"'
echo '{"type":"no such type"}'
echo '{"type":"output","name":7,"data":1}'
echo '{"type":"output","name":"","data":1}'
echo '{"type":"say"}'
echo '{"type":"say","content":null}'
echo '{"type":"idle","id":[1]}'
echo '{"type":"activate"}'
echo '[1,2]'
echo 'null'
printf '\377\376\000\n'
printf '{"type":"output","data":"\\ud800"}\n'
printf '{"type":"output","data":1e999}\n'
head -c 3000000 /dev/zero | tr '\0' '['; echo
echo '{"type":"output","name":"done","data":"still here"}'
cat >/dev/null
