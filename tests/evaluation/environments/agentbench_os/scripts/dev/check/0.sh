# Stands in for upstream's: does `calc` calculate?
while IFS= read -r expression; do
  got=$(calc "$expression") || exit 1
  python3 -c "import sys; sys.exit(abs(float(sys.argv[1]) - ($expression)) >= 1e-5)" "$got" || exit 1
done <<'END'
7 - 2 * 3
(1.5 + 2) / 7
-4 * (2 - 9)
END
