# shellcheck shell=bash
# `races`: the long run of tests/races*.rs. Sourced by qemu-run.sh. FILTER is a regular expression of races' names.
#
# Each race is a process of its own, as many at a time as there are CPUs, so that all of them have work until the end. A
# line says what became of each: its name, its schedules, the time it took. The output of one that failed is printed; it
# tells how its schedule is run again.

cmd_races() {
	local filter=$1 schedules=${SCHEDULES:-100000} binary status=0 total
	((${#MACHINE_OPTIONS[@]} == 0)) || die "races takes no option of a machine: ${MACHINE_OPTIONS[0]}"
	no_options_of_a_run races
	work_dir
	need_rust
	cd "$ROOT" || exit 125
	note "building the races"
	await "${CARGO[@]}" test --quiet --profile races --no-run --package ebbtide --no-default-features --features shuttle \
		--test races --test races_shared --test races_wishes --message-format json-render-diagnostics >"$WORK/build.json" || exit 125
	grep -o '"executable":"[^"]*"' "$WORK/build.json" | cut -d'"' -f4 >"$WORK/binaries"
	[[ -s $WORK/binaries ]] || die "cargo names no test programs"
	while IFS= read -r binary; do
		EBBTIDE_LIST=1 "$binary" --nocapture --test-threads 1 | sed -n 's|.*\brace \(.*\)|\1|p' >"$WORK/names"
		filtered "$filter" "$WORK/names" | sed "s|^|$binary\n|"
	done <"$WORK/binaries" >"$WORK/races"
	total=$(($(wc -l <"$WORK/races") / 2))
	((total > 0)) || die "no race has a name like '$filter'"
	note "$total races, $schedules schedules of each"
	export -f one_race
	EBBTIDE_SCHEDULES=$schedules RACES_LOG=$WORK await xargs -a "$WORK/races" -d '\n' -n 2 -P "$(nproc)" \
		bash -c 'one_race "$@"' one_race || status=1
	((status == 0)) || echo "a race failed"
	((status == 0)) && echo "$total races, $schedules schedules of each: none failed"
	return "$status"
}

# filtered EXPRESSION FILE: its lines in which the expression is.
filtered() {
	local status=0
	grep -E -e "$1" -- "$2" || status=$?
	((status < 2)) || die "'$1' is no regular expression"
}

# one_race BINARY NAME: runs in a shell of its own.
one_race() {
	local log=$RACES_LOG/race.$$ started=$SECONDS status=0 took
	EBBTIDE_RACE=$2 "$1" --nocapture --test-threads 1 >"$log" 2>&1 || status=$?
	took=$((SECONDS - started))
	if ((status == 0)); then
		echo "PASS $2: $EBBTIDE_SCHEDULES schedules, $took s"
	else
		cat "$log"
		echo "FAIL $2"
	fi
	rm -f "$log"
	((status == 0))
}
