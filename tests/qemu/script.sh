# shellcheck shell=bash
# shellcheck disable=SC2154 # run.sh sets filter, asked and programs
# What the script promises beyond one run of one program. Sourced by run.sh.
#
# Each function `case_NAME` is a case, "qemu script NAME" with blanks for the underscores. It prints what is wrong, and
# nothing if all is well.

# script_cases: runs them, in the order of their names.
script_cases() {
	local function title wrong
	for function in $(script_functions); do
		title=$(script_title "$function")
		[[ $title == *"$filter"* ]] || continue
		dir=$WORK/$function
		mkdir "$dir"
		wrong=$($function 2>&1 || true)
		if [[ -z $wrong ]]; then verdict PASS "$title"; else verdict FAIL "$title" "${wrong//$'\n'/$'\n'  }"; fi
		rm -rf "$dir"
	done
}
script_functions() { declare -F | sed -n 's/^declare -f \(case_.*\)/\1/p'; }
script_title() { echo "qemu script ${1#case_}" | tr _ ' '; }

# Is one of them selected?
script_selected() {
	local function
	for function in $(script_functions); do
		[[ $(script_title "$function") != *"$filter"* ]] || return 0
	done
	return 1
}

# expect STATUS LAST COMMAND...: the command's status, and its last line on stderr as a regular expression.
expect() {
	local want=$1 pattern=$2 status=0
	shift 2
	"$@" >"$dir/out" 2>"$dir/err" </dev/null || status=$?
	((status == want)) || echo "status $status, expected $want: $*" "$(tail -n 2 "$dir/err")"
	[[ -z $pattern ]] || tail -n 1 "$dir/err" | grep -Eq -- "$pattern" || echo "stderr's last line is not $pattern: $(tail -n 1 "$dir/err")"
}

# fake_qemu: makes $dir/qemu, which notes its process and becomes the real one.
fake_qemu() {
	local real
	real=$(command -v "$(./qemu-run.sh --no-build --dry-run "${asked[@]}" -- "$programs/hello" | tr ' ' '\n' | grep -m 1 qemu-system)")
	printf '%s\n' '#!/bin/sh' "echo \$\$ >>'$dir/pids'" "exec '$real' \"\$@\"" >"$dir/qemu"
	chmod +x "$dir/qemu"
}

# start_endless: starts a program without end in the background, by the fake QEMU; sets $script and
# $qemu, its processes.
start_endless() {
	local i
	fake_qemu
	rm -f "$dir/pids" "$dir/err"
	QEMU=$dir/qemu setsid "$@" ./qemu-run.sh --no-build --timeout 60 "${asked[@]}" -- demo --mib 64 --passes 100000 \
		>"$dir/out" 2>"$dir/err" </dev/null &
	script=$!
	for ((i = 0; i < 200; i++)); do
		! grep -aq "demo starts" "$dir/err" 2>/dev/null || break
		sleep 0.1
	done
	qemu=$(tail -n 1 "$dir/pids")
}

# gone PROCESS: it is, or will be in a moment.
gone() {
	local i
	for ((i = 0; i < 30; i++)); do
		kill -0 "$1" 2>/dev/null || return 0
		sleep 0.1
	done
	echo "process $1 still runs"
	kill -KILL "$1"
}

# signalled SIGNAL STATUS: the script ends with it, and QEMU with the script.
signalled() {
	local script qemu status=0
	start_endless env "--default-signal=$1"
	kill "-$1" "$script"
	wait "$script" || status=$?
	((status == $2)) || echo "status $status, expected $2"
	tail -n 1 "$dir/err" | grep -q "^qemu-run: ended by SIG$1$" || echo "stderr ends: $(tail -n 1 "$dir/err")"
	gone "$qemu"
}
case_ends_with_TERM() { signalled TERM 143; }
case_ends_with_HUP() { signalled HUP 129; }

# A terminal's Ctrl-C; a background process of a script would not get it, so env gives it back its meaning.
case_ends_with_INT() {
	local script qemu status=0
	start_endless env --default-signal=INT
	kill -INT "$script"
	wait "$script" || status=$?
	((status == 130)) || echo "status $status, expected 130"
	gone "$qemu"
}

# A QEMU that somebody ends is not a program that ended well.
case_QEMU_is_killed() {
	local script qemu status signal
	for signal in TERM KILL; do
		status=0
		start_endless
		kill "-$signal" "$qemu"
		wait "$script" || status=$?
		((status == 125)) || echo "SIG$signal: status $status, expected 125"
		tail -n 1 "$dir/err" | grep -q '^qemu-run: QEMU ended before' || echo "stderr ends: $(tail -n 1 "$dir/err")"
	done
}

# The statistics go to an ordinary file and nothing else is touched.
case_stats_file() {
	local file
	mkfifo "$dir/pipe"
	mkdir "$dir/folder"
	ln -s pipe "$dir/link"
	for file in /dev/null "$dir/pipe" "$dir/link" "$dir/folder"; do
		expect 125 "--stats $file: not an ordinary file" ./qemu-run.sh --no-build --stats "$file" -- "$programs/hello"
		[[ -e $file ]] || echo "$file is gone"
	done
	echo old >"$dir/real"
	ln -s real "$dir/alias"
	expect 0 '' ./qemu-run.sh --no-build "${asked[@]}" --stats "$dir/alias" -- "$programs/hello"
	[[ -L $dir/alias ]] || echo "a link became a file"
	grep -q '"faults"' "$dir/real" || echo "no statistics through a link"
}

# What the environment and the caller's folder could spoil.
case_called_from_elsewhere() {
	local root=$PWD
	mkdir "$dir/tmp"
	ln -s "$root/qemu-run.sh" "$dir/link"
	fake_qemu
	cd "$dir" || return
	expect 0 '' env TMPDIR=tmp QEMU=./qemu CDPATH=/ ./link --no-build "${asked[@]}" -- "$programs/hello"
	grep -q '0 failed' out || echo "no output"
	[[ -s pids ]] || echo "QEMU= was not taken"
	expect 0 '' env RUSTFLAGS=--no-such-flag CARGO_ENCODED_RUSTFLAGS=--no-such-flag CARGO_BUILD_RUSTFLAGS=--no-such-flag \
		./link --build-only "${asked[@]}"
}

# With exact counts several CPUs take turns, always the same ones: all counters agree, that of instructions too.
case_exact_counts_on_four_CPUs() {
	local run
	for run in 1 2; do
		expect 0 '' ./qemu-run.sh --no-build --quiet "${asked[@]}" --icount --cpus 4 --memory 48 \
			--stats "$dir/stats$run" -- "$programs/smptorture" 5 200
		mv "$dir/out" "$dir/out$run"
	done
	cmp "$dir/out1" "$dir/out2"
	cmp "$dir/stats1" "$dir/stats2"
	grep -q '"cpu3_idle_wfi": [1-9]' "$dir/stats1" || echo "the last CPU never idled"
}

case_no_temporary_folder() {
	expect 125 '^qemu-run: no temporary folder' env TMPDIR="$dir/none" ./qemu-run.sh --no-build -- "$programs/hello"
}

# Whatever a program is called, the last line says how it ended.
case_long_program_name() {
	local path=$dir i
	for i in {1..10}; do path+=/$(printf '%0200d' "$i"); done
	mkdir -p "$path"
	path+=/$(printf '%0250d' 0)
	cp "$programs/hello" "$path"
	expect 7 'ended with status 7$' ./qemu-run.sh --no-build "${asked[@]}" -- "$path" exit=7
	path=$dir/$'odd\nname'
	cp "$programs/hello" "$path"
	expect 7 ' odd\?name ended with status 7$' ./qemu-run.sh --no-build "${asked[@]}" -- "$path" exit=7
}

case_test_takes_no_run_options() {
	local option
	for option in --quiet --no-build --dry-run --timeout=9 --stats="$dir/stats"; do
		expect 125 '^qemu-run: test takes no' ./qemu-run.sh test "$option" nothing
	done
}

case_soak() {
	local option
	for option in --stats="$dir/stats" --timeout=9 --icount --dry-run; do
		expect 125 '^qemu-run: soak takes no' ./qemu-run.sh soak "$option"
	done
	expect 125 'seed wants a number' ./qemu-run.sh soak many
	expect 125 '--seconds is for soak' ./qemu-run.sh --seconds 9 -- hello
	expect 0 '' ./qemu-run.sh soak --no-build --seconds 1 --memory 24 --folio-orders none --swap-device late 7
	grep -q '^PASS soak, seed 7, folio orders 0, device late' "$dir/out" || echo "no verdict"
}

case_scale() {
	local line
	for line in memory\ --swap=64 spaces\ --swap=64 spaces\ --memory=128 spaces\ --cpus=2 --swap=64 --cpus=2 \
		policies\ --swap=64 policies\ --policy=clock --cap=8 --dry-run; do
		# shellcheck disable=SC2086 # words
		expect 125 '^qemu-run: scale( [a-z]+)? takes no' ./qemu-run.sh scale --no-build $line
	done
	expect 125 'from --memory 64 on, not 32$' ./qemu-run.sh scale memory --memory 32
	expect 2 'scale ended with status 2$' ./qemu-run.sh --no-build --icount -- scale --percent 59
	expect 0 '' ./qemu-run.sh --no-build --icount --memory 32 -- scale --percent 60
}

# A second debugger finds the first one's port taken, and names its own.
case_two_debuggers() {
	local i name first='' second=''
	for name in first second; do
		./qemu-run.sh debug --no-build --timeout 60 "${asked[@]}" -- "$programs/hello" >/dev/null 2>"$dir/$name" </dev/null &
		# Until its QEMU listens.
		for ((i = 0; i < 100; i++)); do
			printf -v "$name" %s "$(sed -n 's/.*target remote 127.0.0.1:\([0-9]*\).*/\1/p' "$dir/$name" 2>/dev/null)"
			[[ -z ${!name} ]] || ! grep -q ":$(printf %04X "${!name}") .* 0A " /proc/net/tcp || break
			sleep 0.1
		done
	done
	[[ -n $first && -n $second && $first != "$second" ]] || echo "ports: $first, $second"
	jobs -p | xargs kill
	wait
}
