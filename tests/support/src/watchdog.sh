# watchdog DIR BIN [-c name=value]...
#
# Makes the directory of one server, obeys the orders that it reads, and at the end of them stops the server and
# removes the directory. The end comes when the owner closes the pipe, which the kernel does for it if it dies.

# PIPE, because the owner may be gone before it hears that we are ready.
trap '' INT TERM HUP PIPE
dir=$1 bin=$2 pid=
shift 2
mkdir -m 700 "$dir" 2>&1 || exit 1
echo ready
# Later there may be nobody left to read.
exec >/dev/null 2>&1

while read -r order port; do
  case $order in
  initdb)
    "$bin/initdb" -D "$dir/data" -U postgres -A trust -E UTF8 --locale=C --wal-segsize=1 --no-sync \
      </dev/null >>"$dir/log" 2>&1
    echo $? >"$dir/initdb"
    ;;
  start)
    (
      trap - INT TERM HUP PIPE
      exec "$bin/postgres" -D "$dir/data" -k "$dir" -p "$port" "$@" </dev/null >>"$dir/log" 2>&1
    ) &
    pid=$!
    echo $pid >"$dir/pid"
    ;;
  reap) # Until here the kernel keeps the pid for us, so a signal never hits somebody else.
    wait $pid
    pid=
    rm -f "$dir/pid"
    ;;
  esac
done

lock=$dir/data/postmaster.pid
if [ -n "$pid" ]; then
  # Before it handles signals, a shell's background job ignores QUIT; hence the pause, and TERM too.
  [ -e "$lock" ] || sleep 1
  kill -TERM $pid
  kill -QUIT $pid
  # If they are paused. Where there is no such file, the children are killed by the postmaster, after five seconds.
  kill -CONT $pid $(cat "/proc/$pid/task/$pid/children")
  wait $pid
fi
if [ -e "$lock" ]; then
  # The server was killed and has left its segment of shared memory; line 7 has key and id.
  set -- $(sed -n 7p "$lock")
  ipcrm -m "$2"
fi
rm -rf "$dir"
