[ "$(stat -c %a ~/secret)" = 600 ]
