#!/usr/bin/env bash
# The in-QEMU suite: run.sh [MACHINE OPTION...] [-- FILTER]
#
# Runs the cases of the files `cases` and `script.sh` beside this one (their heads
# explain them), two machines side by side, and prints PASS or FAIL for each. Without
# machine options each case runs on the machines that it names; with some (say
# `--cpu neoverse-n2`) each runs once, with those. With `--granule SIZE` the machines
# stay, and get pages of that size. The last line, `@counts PASSED FAILED`, is for the
# caller.
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
readonly ROOT JOBS=2

given=() granule='' filter=
while (($#)); do
	if [[ $1 == -- ]]; then
		filter=${2:-}
		break
	elif [[ $1 == --granule ]]; then
		granule=$2
		shift 2
		continue
	fi
	given+=("$1")
	shift
done
# What was asked for, for runs that are no case's.
asked=(--granule "${granule:-4k}" "${given[@]}")
readonly asked

WORK=$(mktemp -d "${TMPDIR:-/tmp}/ebbtide-suite.XXXXXX")
trap 'rm -rf "$WORK"' EXIT
cd "$ROOT"

# options_of MACHINE: the script's options for a name of an `on` line.
options_of() {
	case $1 in
	max) ;;
	n2) echo --cpu neoverse-n2 ;;
	n1) echo --cpu neoverse-n1 ;;
	a57) echo --cpu cortex-a57 ;;
	a72) echo --cpu cortex-a72 ;;
	no-mte) echo --no-mte ;;
	no-hafdbs) echo --no-hafdbs ;;
	el2) echo --el2 ;;
	4k | 16k | 64k) printf '%q ' --granule "$1" "${given[@]}" ;;
	given) printf '%q ' "${given[@]}" ;;
	*) echo "cases: no machine is called '$1'" >&2 && exit 125 ;;
	esac
}

# Does a machine with these options have MTE?
has_mte() { [[ " $* " != *" --no-mte "* ]] && { [[ " $* " != *" --cpu "* ]] || [[ " $* " =~ " --cpu "(max|neoverse-n2|cortex-a710) ]]; }; }

# Does it have asymmetric tag checks?
has_mte3() { has_mte "$@" && [[ " $* " != *" --cpu "* || " $* " == *" --cpu max"* ]]; }

# Does it have the atomics of Armv8.1?
has_lse() { [[ ! " $* " =~ " --cpu cortex-a"(35|53|57|72) ]]; }

# Is a machine with these options one for the case that has been read?
has_needed() {
	local need
	for need in $needs; do
		case $need in
		mte | mte3 | lse) "has_$need" "$@" || return ;;
		no-mte | no-mte3) ! "has_${need#no-}" "$@" || return ;;
		no-16k) [[ ${granule:-$(granule_of "$@")} != 16k ]] || return ;;
		*) echo "cases: needs '$need'?" >&2 && exit 125 ;;
		esac
	done
}

# granule_of OPTION...: the last that is said.
granule_of() {
	local of=4k
	while (($#)); do
		[[ $1 != --granule ]] || of=$2
		shift
	done
	echo "$of"
}

# Has a machine with these options pages of 16 KiB? Those of Armv8.0 but the smallest have none.
has_16k() { [[ ! " $* " =~ " --cpu cortex-a"(53|57|72) ]]; }

# fits MACHINE: is the machine part of this run? Those that are a page size are not, where another was asked for or
# the case runs on the usual machine with it.
fits() {
	[[ $1 != 16k ]] || has_16k "${given[@]}" || return
	case $1 in
	4k | 16k | 64k) [[ -z $granule ]] || [[ $granule == "$1" && " $on " != *" max "* ]] ;;
	a57 | a72) [[ $granule != 16k ]] ;; # they have none
	esac
}

# verdict PASS|FAIL NAME [DETAIL...]: printed, and counted at the end.
verdict() {
	{
		echo "$1 $2"
		shift 2
		((!$#)) || printf '  %s\n' "$@"
	} | tee -a "$WORK/verdicts"
}

# check_case: compares what a run left in $dir with the case; prints what is wrong.
check_case() {
	local status=$1 line kind pattern page
	page=$(($(granule_of "${options[@]}" | tr -d k) * 1024))
	((status == want)) || echo "exit status $status, expected $want"
	while IFS= read -r line; do
		kind=${line%%$'\t'*} pattern=${line#*$'\t'}
		pattern=${pattern//@page@/$(printf %x "$page")}
		case $kind in
		out) grep -aEq -- "$pattern" "$dir/out" || echo "stdout lacks: $pattern" ;;
		err) grep -aEq -- "$pattern" "$dir/err" || echo "stderr lacks: $pattern" ;;
		no-out) ! grep -aEq -- "$pattern" "$dir/out" || echo "stdout has: $pattern" ;;
		no-err) ! grep -aEq -- "$pattern" "$dir/err" || echo "stderr has: $pattern" ;;
		once) (($(grep -aEc -- "$pattern" "$dir/err") == 1)) || echo "stderr must have once: $pattern" ;;
		last) tail -n 1 "$dir/err" | grep -aEq -- "$pattern" || echo "stderr's last line is not: $pattern" ;;
		at-least | at-most) check_counter "$kind" "$pattern" ;;
		same) keep_same "$pattern" ;;
		esac
	done <<<"$checks"
	((status == 0)) || [[ -s $dir/err ]] || echo "no cause on stderr"
	check_leaks "$status"
}

# check_counter at-least|at-most "NAME N [MiB]": in MiB where pages are counted. One that is not there is -1, and fits
# neither.
check_counter() {
	local counter bound unit found
	read -r counter bound unit <<<"$2"
	found=$(statistic "$counter")
	((found < 0)) || [[ -z $unit ]] || found=$((found * page >> 20))
	case $1 in
	at-least) ((found >= bound)) ;;
	at-most) ((found >= 0 && found <= bound)) ;;
	esac || echo "counter $counter: $found, expected $1 $bound${unit:+ $unit}"
}

statistic() { sed -n "s/.*\"$1\"[ ]*:[ ]*\([0-9]*\).*/\1/p" "$dir/stats.json" 2>/dev/null | grep . || echo -1; }

# Whatever a program does, all frames and slots are back at its end.
check_leaks() {
	local counter
	case $1 in
	101 | 124 | 125) return ;;
	esac
	[[ ${options[*]} != *--selftest* ]] || return 0
	for counter in frames_leaked slots_leaked tag_rooms_leaked; do
		(($(statistic $counter) == 0)) || echo "$counter is $(statistic $counter)"
	done
}

# keep_same PATTERN: the matching text is the same on all machines (see same_everywhere).
keep_same() {
	mkdir -p "$WORK/same/$name"
	grep -aEoh -- "$1" "$dir/out" "$dir/err" >"$WORK/same/$name/$machine" || {
		rm "$WORK/same/$name/$machine"
		echo "nowhere: $1"
	}
}

# run_case: one case on one machine, in the background; the verdict goes to stdout at once.
run_case() {
	local dir=$WORK/$name.$machine status=0 wrong
	mkdir -p "$dir"
	# A case may set another limit among its own options, which come later.
	local line=(./qemu-run.sh --no-build --timeout "$limit" --stats "$dir/stats.json" "${options[@]}")
	((${#program[@]} == 0)) || line+=(-- "${program[@]}")
	"${line[@]}" >"$dir/out" 2>"$dir/err" </dev/null || status=$?
	wrong=$(check_case "$status")
	if [[ -z $wrong ]]; then
		verdict PASS "qemu $name [$machine]"
	else
		verdict FAIL "qemu $name [$machine]" "command: ${line[*]}" "${wrong//$'\n'/$'\n'  }" \
			"stdout, last lines:" "$(tail -n 8 "$dir/out" | sed 's/^/    /')" \
			"stderr, last lines:" "$(tail -n 12 "$dir/err" | sed 's/^/    /')"
	fi
	rm -rf "$dir"
}

# build_for OPTION...: each page size, the CPUs of Armv8.0, and cargo's dev profile have builds of their own; made when
# the first case asks.
built=''
build_for() {
	local key of
	of=$(granule_of "$@")
	[[ $of =~ ^(4|16|64)k$ ]] || return 0
	key=(--granule "$of")
	has_lse "$@" || key+=(--cpu cortex-a72)
	[[ " $* " != *" --dev "* ]] || key+=(--dev)
	[[ $built != *"<${key[*]}>"* ]] || return 0
	built+="<${key[*]}>"
	./qemu-run.sh --build-only "${key[@]}" >/dev/null || verdict FAIL "qemu build for ${key[*]}"
}

# start_case: runs the case that has been read, on each of its machines.
start_case() {
	local machine machine_options options program machines=$on
	[[ -n $name ]] || return 0
	((${#given[@]} == 0)) || [[ $on =~ ^((4k|16k|64k) ?)+$ ]] || machines=given
	for machine in $machines; do
		fits "$machine" || continue
		[[ "qemu $name [$machine]" == *"$filter"* ]] || continue
		selected=1
		[[ -z $only_select ]] || return 0
		eval "machine_options=($(options_of "$machine"))"
		has_needed "${machine_options[@]}" || continue
		# What the case itself says is what it is about, and goes before the machine.
		eval "options=(--granule ${granule:-4k} \"\${machine_options[@]}\" $case_options)"
		build_for "${options[@]}"
		eval "program=($run)"
		if ((${#program[@]})) && [[ -x $programs/${program[0]} ]]; then
			program[0]=$programs/${program[0]}
		fi
		while (($(jobs -rp | wc -l) >= JOBS)); do wait -n || true; done
		run_case &
	done
}

# shellcheck source=tests/qemu/script.sh
source tests/qemu/script.sh

# any_selected: does the filter leave anything to do? If not, nothing need be built.
selected='' only_select=''
any_selected() {
	[[ "qemu debug" != *"$filter"* ]] || return 0
	! script_selected || return 0
	only_select=1
	run_cases
	only_select=''
	[[ -n $selected ]]
}

new_case() {
	name=$1 case_options='' run='' want=0 on=max checks='' needs='' limit=120
}

run_cases() {
	local key rest
	new_case ''
	while read -r key rest; do
		case $key in
		'' | '#'*) ;;
		case) start_case && new_case "$rest" ;;
		options) case_options=$rest ;;
		run) run=$rest ;;
		exit) want=$rest ;;
		on) on=$rest ;;
		needs) needs=$rest ;;
		limit) limit=$rest ;;
		out | err | no-out | no-err | once | last | at-least | at-most | same) checks+="$key"$'\t'"$rest"$'\n' ;;
		*) echo "cases: unknown key '$key'" >&2 && exit 125 ;;
		esac
	done <tests/qemu/cases
	start_case
	wait
}

# same_everywhere: a case with a `same` line gave the same text on all its machines.
same_everywhere() {
	local case file first title
	for case in "$WORK"/same/*/; do
		first='' title="qemu $(basename "$case")"
		for file in "$case"*; do
			echo "     $title [$(basename "$file")]: $(head -1 "$file")"
			if [[ -z $first ]]; then
				first=$file
			elif cmp -s "$first" "$file"; then
				verdict PASS "$title: ${first##*/} and ${file##*/} agree"
			else
				verdict FAIL "$title: ${first##*/} and ${file##*/} differ"
			fi
		done
	done
}

# debug_case: the printed gdb line in batch mode stops at the kernel's entry, with symbols.
debug_case() {
	local title="qemu debug" line pid i
	[[ $title == *"$filter"* ]] || return 0
	if ! command -v gdb-multiarch >/dev/null; then
		echo "SKIP $title: gdb-multiarch is not installed"
		return 0
	fi
	./qemu-run.sh debug --no-build --timeout 60 "${asked[@]}" >"$WORK/debug.out" 2>"$WORK/debug.err" </dev/null &
	pid=$!
	for ((i = 0; i < 100; i++)); do
		line=$(grep -a '^gdb-multiarch ' "$WORK/debug.err" || true)
		[[ -z $line ]] || break
		sleep 0.1
	done
	sleep 1
	eval "$line" >"$WORK/gdb.log" 2>&1 </dev/null || true
	wait "$pid" || true
	if grep -Eq '#0 .*kmain' "$WORK/gdb.log"; then
		verdict PASS "$title"
	else
		verdict FAIL "$title" "$(sed 's/^/  /' "$WORK/gdb.log")"
	fi
}

: >"$WORK/verdicts"
mkdir "$WORK/same"
shopt -s nullglob
if ! any_selected; then
	: # nothing of this suite was asked for
elif ./qemu-run.sh --build-only "${asked[@]}" >"$WORK/programs"; then
	programs=$(<"$WORK/programs")
	run_cases
	same_everywhere
	script_cases
	debug_case
else
	verdict FAIL "qemu build"
fi
echo "@counts $(grep -c ^PASS "$WORK/verdicts" || true) $(grep -c ^FAIL "$WORK/verdicts" || true)"
