#!/usr/bin/env bash
# Builds ebbtide, boots it in QEMU and runs one EL0 program. See --help.
#
# The protocol between this script and the kernel:
#
#   Image     The kernel's ELF as a raw arm64 Image (with an ELF, QEMU passes no device tree).
#   bootargs  Words `key=value` or `flag`: memory=MIB, swap=LIST, swap-device=WORDS, no-mte,
#             tag-checks=MODE, no-hafdbs, folio-orders=LIST, policy=NAME, collapse-ms=N, cap=MIB,
#             quiet, icount, selftest=NAME. QEMU's RAM is memory + swap + the swap records; the kernel
#             manages `memory` of it and keeps the rest for its RAM swap device.
#   initrd    A cpio archive (newc): `init`, the ELF to run; `argv` and `envp`, its strings,
#             each ended by a NUL; `stats-path`, the host file for the statistics (only with
#             --stats); `end-path`, a host file that the kernel makes when the program has ended;
#             `bin/NAME`, every built-in program.
#   stdout    What the program wrote (PL011), byte for byte. Nothing is filtered or added.
#   stderr    The kernel's log (semihosting). The last line names the cause of any exit
#             status but 0.
#   status    The kernel ends the machine with the program's status: 128 + signal if it was
#             killed, 101 for a kernel panic. This script adds 125 (bad command line, failed
#             set-up, a QEMU that ended before the program did), 124 (timeout), and 128 + signal
#             if it was itself ended by one.
set -euo pipefail

ROOT=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
readonly ROOT

die() {
	echo "qemu-run: $*" >&2
	exit 125
}
note() { [[ -n ${QUIET:-} ]] || echo "qemu-run: $*" >&2; }

# Under `cargo run` this names that cargo; here the tool chain is chosen afresh.
unset CARGO CDPATH
# What the environment names relative to this folder must hold in others as well.
if [[ -n ${TMPDIR:-} ]]; then TMPDIR=$(realpath -m -- "$TMPDIR"); fi
if [[ -n ${CARGO_TARGET_DIR:-} ]]; then CARGO_TARGET_DIR=$(realpath -m -- "$CARGO_TARGET_DIR"); fi
if [[ ${QEMU:-} == */* ]]; then QEMU=$(realpath -ms -- "$QEMU"); fi

# shellcheck source=scripts/options.sh
source "$ROOT/scripts/options.sh"
# shellcheck source=scripts/setup.sh
source "$ROOT/scripts/setup.sh"
# shellcheck source=scripts/image.sh
source "$ROOT/scripts/image.sh"
# shellcheck source=scripts/bench.sh
source "$ROOT/scripts/bench.sh"
# shellcheck source=scripts/scale.sh
source "$ROOT/scripts/scale.sh"
# shellcheck source=scripts/test.sh
source "$ROOT/scripts/test.sh"
# shellcheck source=scripts/soak.sh
source "$ROOT/scripts/soak.sh"
# shellcheck source=scripts/mutants.sh
source "$ROOT/scripts/mutants.sh"
# shellcheck source=scripts/races.sh
source "$ROOT/scripts/races.sh"

# Files of this run, gone at its end.
WORK=
work_dir() {
	[[ -n $WORK ]] || WORK=$(mktemp -d "${TMPDIR:-/tmp}/ebbtide.XXXXXX" 2>/dev/null) ||
		die "no temporary folder can be made in ${TMPDIR:-/tmp}"
}

# await COMMAND...: runs it and returns its status. A signal to this script ends it at once, with all
# that it started: it runs in a process group of its own, and bash handles signals while it waits.
CHILD=
await() {
	local status=0
	set -m
	"$@" </dev/null &
	CHILD=$!
	set +m
	wait "$CHILD" || status=$?
	CHILD=
	return "$status"
}

stop_child() {
	local i
	[[ -n $CHILD ]] || return 0
	kill -TERM -- "-$CHILD" 2>/dev/null || true
	for ((i = 0; i < 50; i++)); do
		kill -0 -- "-$CHILD" 2>/dev/null || break
		sleep 0.1
	done
	kill -KILL -- "-$CHILD" 2>/dev/null || true
	wait "$CHILD" 2>/dev/null || true
	CHILD=
}

# on_signal NAME STATUS
on_signal() {
	trap '' HUP INT TERM
	stop_child
	echo "qemu-run: ended by SIG$1" >&2
	exit "$2"
}
trap 'on_signal HUP 129' HUP
trap 'on_signal INT 130' INT
trap 'on_signal TERM 143' TERM
trap 'stop_child; [[ -z $WORK ]] || rm -rf "$WORK"' EXIT

# MTE is a property of QEMU's machine, and refused for a CPU that has none.
cpu_has_mte() { [[ ${CPU%%,*} =~ ^(max|neoverse-n2|cortex-a710)$ ]]; }
# Armv8.0 models: no LSE atomics, so they get a build without.
cpu_is_v80() { [[ ${CPU%%,*} =~ ^cortex-a(35|53|57|72)$ ]]; }
mte_wanted() { [[ -z $NO_MTE ]] && cpu_has_mte; }

# QEMU's RAM in MiB: 24 bytes of record and 128 bytes of raw tags for each 4 KiB
# of swap (larger pages have fewer records), 16 for the records of clusters in each
# MiB, rounded up, and 2 MiB for alignment.
machine_mib() { echo $((MEMORY + SWAP + (SWAP * (256 * (24 + 128) + 16) + 1048575) / 1048576 + 2)); }

boot_args() {
	local args="memory=$MEMORY swap=${SWAP_AREAS:-$SWAP}"
	[[ -z $SWAP_DEVICE ]] || args+=" swap-device=$SWAP_DEVICE"
	[[ -z $NO_MTE ]] || args+=" no-mte"
	[[ -z $TAG_CHECKS ]] || args+=" tag-checks=$TAG_CHECKS"
	[[ -z $NO_HAFDBS ]] || args+=" no-hafdbs"
	[[ -z $FOLIO_ORDERS ]] || args+=" folio-orders=$FOLIO_ORDERS"
	[[ -z $POLICY ]] || args+=" policy=$POLICY"
	[[ -z $COLLAPSE_MS ]] || args+=" collapse-ms=$COLLAPSE_MS"
	[[ -z $CAP ]] || args+=" cap=$CAP"
	[[ -z $QUIET ]] || args+=" quiet"
	[[ -z $ICOUNT ]] || args+=" icount"
	[[ -z $SELFTEST ]] || args+=" selftest=$SELFTEST"
	echo "$args"
}

# machine_line: sets MACHINE_LINE, the QEMU command without kernel and initrd.
machine_line() {
	local machine=virt,gic-version=$GIC,memory-backend=ram cpu=$CPU ram
	ram=$(machine_mib)
	if mte_wanted; then machine+=,mte=on; else machine+=,mte=off; fi
	[[ -z $EL2 ]] || machine+=,virtualization=on
	# One instruction is one tick of the counter, and two runs are the same to the last one.
	[[ -z $ICOUNT ]] || machine+=,dtb-randomness=off cpu+=,cntfrq=1000000000
	# The host gives memory at the first touch: a large swap space costs nothing until it is used.
	MACHINE_LINE=("${QEMU_CMD[@]}" -object "memory-backend-ram,id=ram,size=${ram}M,reserve=off"
		-machine "$machine" -cpu "$cpu" -smp "$CPUS" -m "$ram" -nodefaults -display none)
	[[ -z $ICOUNT ]] || MACHINE_LINE+=(-icount "shift=0,sleep=off" -seed 1)
}

# boot IMAGE INITRD: runs the machine; returns the exit status of the whole script.
boot() {
	local image=$1 initrd=$2 line status=0 started=$SECONDS
	machine_line
	line=("${MACHINE_LINE[@]}" -serial stdio -semihosting-config "enable=on,target=native"
		-kernel "$image" -initrd "$initrd" -append "$(boot_args)")
	[[ -z $DEBUG ]] || line+=(-gdb "tcp:127.0.0.1:$GDB_PORT" -S)
	if [[ -n $DRY_RUN ]]; then
		printf '%q ' "${line[@]}"
		echo
		return 0
	fi
	[[ -z $TIMEOUT ]] || line=(timeout --foreground -k 5 "$TIMEOUT" "${line[@]}")
	rm -f "$WORK/end"
	await "${line[@]}" || status=$?
	# The program's own end, whatever the status. A panic, a refusal to start and a self-test leave no such file.
	[[ ! -e $WORK/end ]] || return "$status"
	# A QEMU that had to be killed reads as 137.
	if [[ -n $TIMEOUT ]] && ((status == 124 || (status == 137 && SECONDS - started >= TIMEOUT))); then
		echo "qemu-run: no end within $TIMEOUT s: timeout" >&2
		return 124
	fi
	if ((status == 1)) && ! machine_starts; then
		echo "qemu-run: QEMU cannot start this machine (-cpu $CPU, $(machine_mib) MiB)" >&2
		return 125
	fi
	if ((status == 101 || status == 125)) || [[ -n $SELFTEST ]]; then return "$status"; fi
	echo "qemu-run: QEMU ended before the program did (its status: $status)" >&2
	return 125
}

# Can QEMU build the machine? It is not run.
machine_starts() { "${MACHINE_LINE[@]}" -S -monitor stdio <<<quit >/dev/null 2>&1; }

# run_program PROGRAM [ARG...]: build, pack, boot.
run_program() {
	[[ ! -f $1 ]] || is_aarch64_elf "$1" || die "$1: not an AArch64 ELF program"
	need_qemu "$(mte_wanted || echo old)"
	[[ -n $NO_BUILD ]] || build_all
	work_dir
	pick_program "$1"
	pack_initrd "$WORK/initrd.cpio" "$@"
	boot "$KERNEL_IMAGE" "$WORK/initrd.cpio"
}

# Does anybody listen on that port? Asked of the kernel: a connection would stop the machine that is debugged there.
port_is_taken() {
	grep -Eqs "^ *[0-9]+: [0-9A-F]+:$(printf %04X "$1") [0-9A-F]+:[0-9A-F]+ 0A " /proc/net/tcp /proc/net/tcp6
}

cmd_debug() {
	DEBUG=1
	have gdb-multiarch || ! can_install || install gdb-multiarch
	[[ -n $NO_BUILD ]] || build_all
	NO_BUILD=1
	GDB_PORT=1234
	while port_is_taken "$GDB_PORT"; do GDB_PORT=$((GDB_PORT + 1)); done
	printf '%s\n' "qemu-run: waiting for gdb; in another terminal:" \
		"gdb-multiarch -batch -ex 'target remote 127.0.0.1:$GDB_PORT' -ex 'hbreak kmain' -ex continue -ex bt $(printf %q "$(kernel_elf)")" >&2
	run_program "$@"
}

main() {
	parse_command_line "$@"
	case $COMMAND in
	run) run_program "${PROGRAM[@]}" ;;
	debug) cmd_debug "${PROGRAM[@]}" ;;
	bench) cmd_bench "$OPERAND" ;;
	scale) cmd_scale "$OPERAND" ;;
	test) cmd_test "$OPERAND" ;;
	soak) cmd_soak "$OPERAND" ;;
	mutants) cmd_mutants "$OPERAND" ;;
	races) cmd_races "$OPERAND" ;;
	help) usage ;;
	build) # inner: everything the in-QEMU suite needs, and where its programs lie
		need_qemu "$(mte_wanted || echo old)"
		build_for_tests
		test_program_dir
		;;
	esac
}

main "$@"
