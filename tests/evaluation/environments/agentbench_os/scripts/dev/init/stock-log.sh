# Stands in for upstream's: who | what | index | count.
for number in $(seq 150); do
  who=$([ $((number % 3)) = 0 ] && echo Bob || echo Ann)
  what=$([ $((number % 2)) = 0 ] && echo Sell || echo Purchase)
  echo "$who | $what | $((number * 7 % 90)) | $((number * 13 % 500))"
done > /usr/stock.log
