# Children and grandchildren; some of them lose their parent.
sleep 300 &
sh -c 'sleep 300 & sleep 300 & exit' &
sh -c 'sh -c "sleep 300; :"; :' &
echo '{"type":"ready"}'
cat >/dev/null
wait
