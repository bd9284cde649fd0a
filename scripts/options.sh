# shellcheck shell=bash
# The command line. Sourced by qemu-run.sh; sets one variable per option.
# shellcheck disable=SC2034 # they are used there

usage() {
	cat <<-'TEXT'
		./qemu-run.sh                           build, boot, run the demo: a tagged workload twice the size of RAM
		./qemu-run.sh -- PROGRAM [ARG...]       boot and run at EL0: a static AArch64 ELF file, or a built-in by name
		./qemu-run.sh test [FILTER]             every test: host, then in QEMU
		./qemu-run.sh mutants [FILTER]          the library with one mistake at a time: is a host test red?
		./qemu-run.sh races [FILTER]            CPUs that meet, 100000 orders of steps for each pair or triple of calls
		./qemu-run.sh bench [NAME]              instruction counts, table and JSON
		./qemu-run.sh scale [WHAT]              instructions a page by size of memory and by CPUs: both, or
		                                        memory, spaces; and by policy of replacement: policies
		./qemu-run.sh soak [SEED]               everything at once on four CPUs, for a time
		./qemu-run.sh debug [-- PROGRAM ...]    the same as run, waiting for gdb on port 1234 or above

		Options, before or after the subcommand:
		  --memory MIB         RAM of the machine, with all kernel overhead (128)
		  --swap MIB           swap space, page data only (twice the memory); several areas as
		                       MIB[:PRIORITY],..., the higher priority first, equals in turn
		  --cap MIB            what the program may have in memory, and each of its children; the
		                       rest of it is in swap (no cap)
		  --swap-device WORDS  checked (a sum of each page), late[=MS] (ends requests later, in any order),
		                       fail=N (each N-th request), damage=N (a bit of each N-th page read)
		  --granule 4k|16k|64k size of a page (4k)
		  --cpu MODEL          QEMU's CPU model (max)
		  --el2                enter the kernel at EL2
		  --no-mte             a machine without memory tags
		  --tag-checks MODE    sync, async or asymm: for a program that allows several (async)
		  --no-hafdbs          access and dirty flags in software
		  --icount             exact counts: one instruction is one nanosecond
		  --timeout SECONDS    give up after that long: exit 124 (never)
		  --seconds N          how long soak lasts in all (600)
		  --stats FILE.json    counters at exit; for bench, its rows
		  --quiet              of the kernel's log only warnings and deaths
		  --folio-orders LIST  folios of 2^ORDER pages on first touch, e.g. 0,4, or none
		                       (0 and the contiguous group's; for bench, both, one after the other)
		  --policy NAME        which page leaves: clock, generations or adaptive (adaptive)
		  --collapse-ms N      look for single pages to make folios of every N ms; 0: never (10000; bench: 0)
		  --cpus N             CPUs, 1 to 8 (1; for soak 4)
		  --gic 2|3            interrupt controller: GICv2 or GICv3 (3)
		  --schedules N        of each race (100000)

		The program's output is stdout, the kernel's log is stderr, the exit status is the
		program's: 128+signal if killed (139 bad access, 137 out of memory), 101 kernel panic,
		124 timeout, 125 bad command line or failed set-up, 130 after Ctrl-C.
		QEMU= in the environment names another QEMU (8.0 or newer; older only with --no-mte).
	TEXT
}

unsupported() {
	echo "qemu-run: $* is not supported yet" >&2
	exit 125
}

# number OPTION VALUE MIN MAX
number() {
	[[ $2 =~ ^[0-9]{1,9}$ ]] || die "$1 wants a number, not '$2'"
	local n=$((10#$2))
	((n >= $3 && n <= $4)) || die "$1 $n is out of range ($3 to $4)"
	echo "$n"
}

# host_file FILE: its absolute path; an ordinary file that can be written, or room for one.
host_file() {
	local dir
	dir=$(cd "$(dirname -- "$1")" 2>/dev/null && pwd) || die "--stats $1: no such folder"
	if [[ -e $1 || -L $1 ]]; then
		[[ -f $1 ]] || die "--stats $1: not an ordinary file"
		[[ -w $1 ]] || die "--stats $1: cannot be written"
	else
		[[ -w $dir ]] || die "--stats $1: cannot be written"
	fi
	echo "${dir%/}/$(basename -- "$1")"
}

# swap_areas LIST: as the kernel takes it.
swap_areas() {
	local area all=() areas
	[[ $1 =~ ^[0-9]+(:-?[0-9]+)?(,[0-9]+(:-?[0-9]+)?)*$ ]] || die "--swap wants a number, or MIB[:PRIORITY] with commas, not '$1'"
	IFS=, read -ra areas <<<"$1"
	((${#areas[@]} <= 8)) || die "--swap: at most 8 areas"
	for area in "${areas[@]}"; do
		all+=("$(number --swap "${area%%:*}" 0 1048576)") || exit 125
		[[ $area != *:* ]] || all[-1]+=:$(priority "${area#*:}") || exit 125
	done
	(
		IFS=,
		echo "${all[*]}"
	)
}

# priority NUMBER: as of Linux, -1 for none to 32767.
priority() {
	[[ $1 == -1 ]] || number "a priority of --swap" "$1" 0 32767 >/dev/null
	echo "$1"
}

# total_of AREAS: MiB in all.
total_of() {
	local area areas total=0
	IFS=, read -ra areas <<<"$1"
	for area in "${areas[@]}"; do total=$((total + ${area%%:*})); done
	echo "$total"
}

# folio_orders LIST: as the kernel takes it, numbers with commas. A folio has at most 2^9 pages.
folio_orders() {
	local order
	[[ $1 != none ]] || set -- 0
	[[ $1 =~ ^[0-9]+(,[0-9]+)*$ ]] || die "--folio-orders wants 'none' or numbers with commas, not '$1'"
	for order in ${1//,/ }; do
		((${#order} == 1)) || die "--folio-orders: $order is out of range (0 to 9)"
	done
	echo "$1"
}

parse_command_line() {
	CPUS=1 GIC=3 MEMORY=128 SWAP='' SWAP_AREAS='' SWAP_DEVICE='' GRANULE=4k CPU=max EL2='' NO_MTE='' TAG_CHECKS='' NO_HAFDBS='' ICOUNT='' TIMEOUT='' STATS='' QUIET='' SECONDS_IN_ALL=''
	SCHEDULES='' FOLIO_ORDERS='' POLICY='' COLLAPSE_MS='' CAP='' KERNEL_ELF='' SELFTEST='' DEV='' NO_BUILD='' DRY_RUN='' DEBUG=''
	COMMAND='' OPERAND='' PROGRAM=() MACHINE_OPTIONS=()
	MEMORY_GIVEN=''
	local cpus_given='' words=()
	while (($#)); do
		local option=$1 value='' takes_value=1
		case $option in
		--) break ;;
		--el2 | --no-mte | --no-hafdbs | --icount | --quiet | --dev | --no-build | --build-only | --dry-run | --help | -h) takes_value='' ;;
		--memory | --swap | --swap-device | --cpu | --tag-checks | --timeout | --seconds | --stats | --kernel-elf | --selftest | --cpus | --gic | --granule | --folio-orders | --policy | --collapse-ms | --cap | --schedules | --trace) ;;
		--*=*) # the other way to write a value
			value=${option#*=}
			shift
			set -- "${option%%=*}" "$value" "$@"
			continue
			;;
		-*) die "unknown option $option (see --help)" ;;
		*)
			words+=("$option")
			shift
			continue
			;;
		esac
		shift
		if [[ -n $takes_value ]]; then
			[[ $# -gt 0 && $1 != -- ]] || die "$option wants a value"
			value=$1
			shift
		fi
		case $option in
		--memory)
			MEMORY=$(number "$option" "$value" 16 1048576)
			MEMORY_GIVEN=$MEMORY
			;;
		--swap)
			SWAP_AREAS=$(swap_areas "$value")
			SWAP=$(total_of "$SWAP_AREAS")
			((SWAP <= 1048576)) || die "--swap $value is out of range (0 to 1048576 in all)"
			;;
		--swap-device)
			[[ $value =~ ^(checked|late(=[0-9]{1,4})?|fail=[0-9]{1,9}|damage=[0-9]{1,9})(,(checked|late(=[0-9]{1,4})?|fail=[0-9]{1,9}|damage=[0-9]{1,9}))*$ ]] ||
				die "--swap-device wants checked, late, late=MS, fail=N, damage=N, with commas, not '$value'"
			SWAP_DEVICE=$value
			;;
		--cpu)
			[[ $value =~ ^[A-Za-z0-9_.,=-]+$ ]] || die "--cpu wants a CPU model, not '$value'"
			CPU=$value
			;;
		--el2) EL2=1 ;;
		--no-mte) NO_MTE=1 ;;
		--tag-checks)
			[[ $value =~ ^(sync|async|asymm)$ ]] || die "--tag-checks wants sync, async or asymm, not '$value'"
			TAG_CHECKS=$value
			;;
		--no-hafdbs) NO_HAFDBS=1 ;;
		--icount) ICOUNT=1 ;;
		--timeout) TIMEOUT=$(number "$option" "$value" 1 999999) ;;
		--seconds) SECONDS_IN_ALL=$(number "$option" "$value" 1 999999) ;;
		--stats) STATS=$(host_file "$value") ;;
		--quiet) QUIET=1 ;;
		--cpus)
			CPUS=$(number "$option" "$value" 1 8)
			cpus_given=1
			;;
		--gic)
			[[ $value =~ ^[23]$ ]] || die "--gic wants 2 or 3, not '$value'"
			GIC=$value
			;;
		--granule)
			case $value in
			4k | 16k | 64k) GRANULE=$value ;;
			*) die "--granule wants 4k, 16k or 64k, not '$value'" ;;
			esac
			;;
		--folio-orders) FOLIO_ORDERS=$(folio_orders "$value") ;;
		--policy)
			[[ $value =~ ^(clock|generations|adaptive)$ ]] || die "--policy wants clock, generations or adaptive, not '$value'"
			POLICY=$value
			;;
		--collapse-ms) COLLAPSE_MS=$(number "$option" "$value" 0 3600000) ;;
		--cap) CAP=$(number "$option" "$value" 1 1048576) ;;
		--schedules) SCHEDULES=$(number "$option" "$value" 2 999999999) ;;
		--trace) unsupported "--trace" ;;
		# From here on for the project's own use: cargo's runner, the in-QEMU tests.
		--kernel-elf)
			[[ -f $value ]] || die "--kernel-elf $value: no such file"
			KERNEL_ELF=$(realpath -- "$value")
			;;
		--selftest) SELFTEST=$value ;;
		--dev) DEV=1 ;; # the kernel as plain cargo builds it
		--no-build) NO_BUILD=1 ;;
		--build-only) COMMAND=build ;;
		--dry-run) DRY_RUN=1 ;;
		--help | -h) COMMAND=help ;;
		esac
		# What describes the machine is handed on to the in-QEMU tests.
		case $option in
		--memory | --swap | --swap-device | --cpu | --cpus | --gic | --granule | --folio-orders | --policy | --collapse-ms) MACHINE_OPTIONS+=("$option" "$value") ;;
		--el2 | --no-mte | --no-hafdbs | --icount) MACHINE_OPTIONS+=("$option") ;;
		esac
	done
	[[ $COMMAND != help ]] || return 0
	if [[ $COMMAND == build ]]; then
		SWAP=${SWAP:-$((2 * MEMORY))}
		return 0
	fi
	if (($#)); then
		shift # the --
		(($#)) || die "-- wants a program"
		PROGRAM=("$@")
	fi
	parse_words "${words[@]}"
	if [[ $COMMAND == bench ]]; then
		ICOUNT=1
		[[ -n $MEMORY_GIVEN ]] || MEMORY=512
		[[ -n $SWAP || -n $MEMORY_GIVEN ]] || SWAP=1024
	fi
	[[ $COMMAND != scale ]] || ICOUNT=1
	if [[ $COMMAND == soak ]]; then
		SECONDS_IN_ALL=${SECONDS_IN_ALL:-600}
		[[ -n $cpus_given ]] || CPUS=4
		[[ -n $MEMORY_GIVEN ]] || MEMORY=96
		# Each of two areas holds all, and what forks make of it, while the other one is off.
		[[ -n $SWAP ]] || SWAP_AREAS=$((5 * MEMORY)),$((5 * MEMORY)) SWAP=$((10 * MEMORY))
	fi
	[[ -z $SECONDS_IN_ALL || $COMMAND == soak ]] || die "--seconds is for soak"
	SWAP=${SWAP:-$((2 * MEMORY))}
	# The kernel's map is 512 GiB, of which RAM does not begin before the second.
	(($(machine_mib) <= 511 * 1024)) || die "--memory $MEMORY and --swap $SWAP need more than the kernel's map of 511 GiB"
}

# parse_words WORD...: the subcommand and its operand.
parse_words() {
	COMMAND=${1:-run} OPERAND=${2:-}
	case $COMMAND in
	run | debug) (($# <= 1)) || die "'$OPERAND': a program goes after --" ;;
	soak)
		(($# <= 2)) || die "$COMMAND takes one operand"
		((${#PROGRAM[@]} == 0)) || die "$COMMAND takes no program"
		[[ -z $OPERAND ]] || OPERAND=$(number "a seed" "$OPERAND" 0 999999999) || exit 125
		;;
	test | bench | scale | mutants | races)
		(($# <= 2)) || die "$COMMAND takes one operand"
		((${#PROGRAM[@]} == 0)) || die "$COMMAND takes no program"
		;;
	*) die "unknown subcommand '$COMMAND' (see --help)" ;;
	esac
	[[ -z $SCHEDULES || $COMMAND == races ]] || die "--schedules goes with races"
	((${#PROGRAM[@]})) || PROGRAM=(demo)
}

# no_options_of_a_run COMMAND: it makes its own machines, or none.
no_options_of_a_run() {
	[[ -z $STATS$TIMEOUT$QUIET$TAG_CHECKS$CAP ]] || die "$1 takes no --stats, --timeout, --quiet, --tag-checks, --cap"
	[[ -z $KERNEL_ELF$SELFTEST$DEV$NO_BUILD$DRY_RUN ]] ||
		die "$1 takes no --kernel-elf, --selftest, --dev, --no-build, --dry-run"
}
