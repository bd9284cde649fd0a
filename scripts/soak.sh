# shellcheck shell=bash
# `soak`: tests/programs/soak.c for as long as is asked, on four CPUs that truly run side by side. Sourced by qemu-run.sh.
#
# A quarter of the time each: folios of the default orders and single pages, on the plain swap device and on one that
# ends requests late. What the command line says of folios or devices takes their place. Prints PASS or FAIL for each
# run, with what came to light; the seed is new each time unless it is given, and is printed.

cmd_soak() {
	local seed=${1:-$((EPOCHSECONDS % 1000000))} device orders each failed=0 all_orders=('' 0) all_devices=('' late)
	[[ -z $STATS$TIMEOUT$ICOUNT ]] || die "soak takes no --stats, --timeout, --icount"
	[[ -z $KERNEL_ELF$SELFTEST$DRY_RUN ]] || die "soak takes no --kernel-elf, --selftest, --dry-run"
	[[ -z $FOLIO_ORDERS ]] || all_orders=("$FOLIO_ORDERS")
	[[ -z $SWAP_DEVICE ]] || all_devices=("$SWAP_DEVICE")
	each=$((SECONDS_IN_ALL / (${#all_orders[@]} * ${#all_devices[@]})))
	((each > 0)) || each=1
	need_qemu "$(mte_wanted || echo old)"
	[[ -n $NO_BUILD ]] || { build_all && build_test_programs; }
	work_dir
	for device in "${all_devices[@]}"; do
		for orders in "${all_orders[@]}"; do
			SWAP_DEVICE=$device FOLIO_ORDERS=$orders
			soak_once "$each" "$seed" || failed=$((failed + 1))
			seed=$((seed + 1))
		done
	done
	((failed == 0))
}

# soak_once SECONDS SEED
soak_once() {
	local name status=0 counter wrong=() started=$SECONDS
	name="soak, seed $2, folio orders ${FOLIO_ORDERS:-default}, device ${SWAP_DEVICE:-plain}"
	# To fill the memory before and to look at all of it in the end takes its time on a busy machine.
	STATS=$WORK/soak.json TIMEOUT=$((2 * $1 + 300))
	pick_program "$(test_program_dir)/soak"
	pack_initrd "$WORK/initrd.cpio" soak "$1" "$2"
	boot "$KERNEL_IMAGE" "$WORK/initrd.cpio" >"$WORK/soak.out" 2>"$WORK/soak.err" || status=$?
	((status == 0)) || wrong+=("exit status $status")
	grep -q '^0 mismatches$' "$WORK/soak.out" || wrong+=("not without mismatches")
	for counter in frames_leaked slots_leaked tag_rooms_leaked; do
		grep -q "\"$counter\": 0\b" "$STATS" || wrong+=("$counter")
	done
	sed 's/^/  /' "$WORK/soak.out"
	sed -n 's/^ *"\(faults\|forks\|copies\|swap_out\|swap_in\|lazy_freed\|splits\|raced\)": \([0-9]*\).*/  \1 \2/p' "$STATS"
	if ((${#wrong[@]} == 0)); then
		echo "PASS $name ($((SECONDS - started)) s)"
	else
		printf '  %s\n' "${wrong[@]}"
		tail -n 40 "$WORK/soak.err" | sed 's/^/  /'
		echo "FAIL $name"
		return 1
	fi
}
