# shellcheck shell=bash
# `mutants`: does a test go red for each mistake in tests/mutants? Sourced by qemu-run.sh.
#
# A mutant is the library with one thing taken away or done wrongly. It is made in a copy of the sources, in
# target/mutants, and the host tests run until one is red: then it is caught. A mutant that all tests let pass is a
# missing test, one that does not build or whose place is gone from the source is no mutant; all three fail the
# command. The files in tests/mutants are lists of
#
#   mutant NAME
#   law NUMBER            of docs/INVARIANTS.md
#   file PATH
#   tests TEST...         optional: a test file, or FILE::FILTER, that is tried first
#   what WORD...          what is wrong, in a few words
#   <<<<
#   lines that the file has exactly once
#   ====
#   lines in their place, or none
#   >>>>

# read_mutants FILTER: sets M_NAME, M_LAW, M_FILE, M_TESTS, M_WHAT, M_OLD and M_NEW, arrays in step.
read_mutants() {
	local filter=$1 list line part='' name law file tests what old new
	M_NAME=() M_LAW=() M_FILE=() M_TESTS=() M_WHAT=() M_OLD=() M_NEW=()
	for list in "$ROOT"/tests/mutants/*; do
		name='' law='' file='' tests='' what=''
		while IFS= read -r line; do
			case $part:$line in
			:mutant\ *) name=${line#* } law='' file='' tests='' what='' ;;
			:law\ *) law=${line#* } ;;
			:file\ *) file=${line#* } ;;
			:tests\ *) tests=${line#* } ;;
			:what\ *) what=${line#* } ;;
			:'<<<<') part=old old='' new='' ;;
			old:'====') part=new ;;
			new:'>>>>')
				part=''
				[[ -n $name && -n $law && -n $file && -n $what && -n $old ]] || die "$list: '$name' is not complete"
				[[ " ${M_NAME[*]} " != *" $name "* ]] || die "$list: a second '$name'"
				[[ $name == *"$filter"* ]] || continue
				M_NAME+=("$name") M_LAW+=("$law") M_FILE+=("$file") M_TESTS+=("$tests") M_WHAT+=("$what")
				M_OLD+=("${old%$'\n'}") M_NEW+=("${new%$'\n'}")
				;;
			old:*) old+=$line$'\n' ;;
			new:*) new+=$line$'\n' ;;
			: | :'#'*) ;;
			*) die "$list: '$line' has no meaning" ;;
			esac
		done <"$list"
		[[ -z $part ]] || die "$list: '$name' has no end"
	done
}

cmd_mutants() {
	local filter=$1 total caught=0 index
	work_dir
	need_rust
	read_mutants "$filter"
	total=${#M_NAME[@]}
	((total > 0)) || die "no mutant has '$filter' in its name"
	mkdir -p "$ROOT/target/mutants"
	exec {MUTANTS_LOCK}>"$ROOT/target/mutants/lock"
	flock -n "$MUTANTS_LOCK" || die "mutants are being tried already"
	# A place that is always the same: cargo builds again only what a mutant changes. What the last mutant of an earlier
	# run left there is older than these files.
	COPY=$ROOT/target/mutants/source
	rm -rf "$COPY"
	mkdir "$COPY"
	tar -C "$ROOT" --exclude=./target --exclude=./.git -cf - . | tar -C "$COPY" -xmf -
	cd "$COPY" || exit 125
	# The kernel is not under test here, and nobody debugs a mutant. Builds of a part of a crate gain little, and one
	# that is cut short may leave parts that do not fit.
	MUTANT_CARGO=(env CARGO_TARGET_DIR="$ROOT/target/mutants" CARGO_PROFILE_DEV_DEBUG=0 CARGO_INCREMENTAL=0
		"${CARGO[@]}" test --no-run --package ebbtide --no-default-features)
	without_mutant
	MUTANT_CARGO+=(--offline)
	for index in "${!M_NAME[@]}"; do
		if try_mutant "$index"; then caught=$((caught + 1)); fi
	done
	echo "$caught of $total caught"
	((caught == total))
}

# without_mutant: all tests, which must be green; sets TEST_FILES, the quickest first, and what each took.
without_mutant() {
	local file started order=()
	TEST_FILES=(lib)
	declare -gA TEST_SECONDS=()
	for file in tests/*.rs; do TEST_FILES+=("$(basename "$file" .rs)"); done
	for file in "${TEST_FILES[@]}"; do TEST_SECONDS[$file]=540; done
	for file in "${TEST_FILES[@]}"; do
		build_test "$file" || die "$file does not build, without any mutant: $(tail -5 "$WORK/build.log")"
		started=$SECONDS
		if red_test "$file" ''; then die "$RED is red without any mutant"; fi
		TEST_SECONDS[$file]=$((SECONDS - started))
		order+=("${TEST_SECONDS[$file]} $file")
	done
	mapfile -t TEST_FILES < <(printf '%s\n' "${order[@]}" | sort -n | cut -d' ' -f2)
}

# build_test FILE: sets TEST_BINARY.
build_test() {
	local target=(--test "$1") status=0
	[[ $1 != lib ]] || target=(--lib)
	[[ $1 != races* ]] || target+=(--features shuttle)
	"${MUTANT_CARGO[@]}" "${target[@]}" >"$WORK/build.log" 2>&1 || status=$?
	if ((status > 128)) || grep -qE 'signal: (2|9|15),' "$WORK/build.log"; then die "the build was ended from outside"; fi
	((status == 0)) || return 1
	TEST_BINARY=$(sed -n 's/^ *Executable .*(\(.*\))$/\1/p' "$WORK/build.log")
}

# red_test FILE FILTER: runs TEST_BINARY, built from FILE, until one test is red, and sets RED to that. False if none
# is.
red_test() {
	local file=$1 filter=$2 line status=0 limit running
	# A hang is red too. Other work on this machine is not.
	limit=$((3 * ${TEST_SECONDS[$file]} + 60))
	RED=
	exec {TEST_OUTPUT}< <(exec timeout -k 5 "$limit" "$TEST_BINARY" --format pretty ${filter:+"$filter"} 2>&1)
	running=$!
	while IFS= read -r -u "$TEST_OUTPUT" line; do
		if [[ $line =~ ^test\ (.*)\ \.\.\.\ FAILED$ ]]; then
			RED=$file::${BASH_REMATCH[1]}
			kill "$running" 2>/dev/null || true
			break
		fi
		# A panic that cannot be caught ends the process: then this is the last that is heard of the test.
		[[ ! $line =~ ^thread\ \'([^\']*)\' ]] || RED="$file::${BASH_REMATCH[1]}"
	done
	exec {TEST_OUTPUT}<&-
	wait "$running" || status=$?
	((status != 0)) || return 1
	case $status in
	124) RED="$file (no end)" ;;
	130 | 143) [[ -n $RED ]] || die "the tests were ended from outside" ;;
	esac
	RED=${RED:-$file (status $status)}
}

# try_mutant INDEX: true if it is caught.
try_mutant() {
	local name=${M_NAME[$1]} file=${M_FILE[$1]} old=${M_OLD[$1]} text rest test_file filter first tried=''
	if ! grep -qF "| ${M_LAW[$1]} | \`$name\` |" docs/INVARIANTS.md; then
		echo "BROKEN $name: docs/INVARIANTS.md does not list it under law ${M_LAW[$1]}"
		return 1
	fi
	text=$(cat "$file") || return 1
	rest=${text#*"$old"}
	if [[ $rest == "$text" || $rest != "${rest#*"$old"}" ]]; then
		echo "STALE $name: its lines are not in $file exactly once"
		return 1
	fi
	printf '%s\n' "${text%%"$old"*}${M_NEW[$1]}$rest" >"$file"
	# The tests that the mutant names, then all others.
	for first in ${M_TESTS[$1]} "${TEST_FILES[@]}"; do
		test_file=${first%%::*} filter=''
		[[ $first == "$test_file" ]] || filter=${first#*::}
		[[ " $tried " != *" $test_file "* ]] || continue
		[[ -n $filter ]] || tried+=" $test_file"
		if ! build_test "$test_file"; then
			echo "BROKEN $name: it does not build"
			grep -m 3 -A 6 '^error' "$WORK/build.log"
			printf '%s\n' "$text" >"$file"
			return 1
		fi
		if red_test "$test_file" "$filter"; then
			echo "caught $name by $RED"
			printf '%s\n' "$text" >"$file"
			return 0
		fi
	done
	echo "MISSED $name: ${M_WHAT[$1]}"
	printf '%s\n' "$text" >"$file"
	return 1
}
