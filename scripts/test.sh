# shellcheck shell=bash
# `test`: everything that is checked, in one summary line. Sourced by qemu-run.sh.
#
# Three parts: format, lints and documentation, the host tests, the in-QEMU suite (tests/qemu). Each prints
# PASS or FAIL and a name; FILTER is a substring of the names.

PASSED=0 FAILED=0 SKIPPED=

pass() { PASSED=$((PASSED + 1)) && echo "PASS $1"; }
fail() { FAILED=$((FAILED + 1)) && echo "FAIL $1"; }

cmd_test() {
	local filter=$1
	no_options_of_a_run test
	work_dir
	need_checkers
	cd "$ROOT" || exit 125
	test_step "$filter" "cargo fmt" "${FMT[@]}" --all --check
	test_step "$filter" "cargo clippy, host" "${CLIPPY[@]}" --quiet --workspace --all-targets -- -D warnings
	test_step "$filter" "cargo clippy, races" "${CLIPPY[@]}" --quiet --package ebbtide --no-default-features \
		--features shuttle --lib --test races --test races_shared --test races_wishes -- -D warnings
	test_step "$filter" "cargo clippy, target" clippy_target selftest
	test_step "$filter" "cargo clippy, target, 16k" clippy_target selftest,granule-16k
	test_step "$filter" "cargo clippy, target, 64k" clippy_target selftest,granule-64k
	test_step "$filter" "cargo doc" env RUSTDOCFLAGS='-D warnings' \
		"${CARGO[@]}" doc --quiet --no-deps --package ebbtide --lib --features emu
	# No test of the host is called so: nothing of it need be built.
	[[ $filter == qemu* ]] || host_tests "$filter"
	qemu_tests "$filter"
	if ((PASSED + FAILED == 0)) && [[ -z $SKIPPED ]]; then
		echo "qemu-run: no test is called '$filter'" >&2
		return 125
	fi
	echo "$PASSED passed, $FAILED failed"
	((FAILED == 0))
}

# test_step FILTER NAME COMMAND...: one check that is one command.
test_step() {
	local filter=$1 name=$2
	shift 2
	[[ $name == *"$filter"* ]] || return 0
	if await "$@" >"$WORK/step.log" 2>&1; then
		pass "$name"
	else
		cat "$WORK/step.log"
		fail "$name"
	fi
}

# clippy_target FEATURES
clippy_target() {
	env "${CLEAN_ENV[@]}" "${TARGET_ENV[@]}" "${CLIPPY[@]}" --quiet --workspace --features "$1" --release \
		--target "$TARGET" -- -D warnings
}

host_tests() {
	cargo_tests "$1" --workspace
	# Where each atomic operation is a step of a scheduler: a build of its own.
	cargo_tests "$1" --package ebbtide --no-default-features --features shuttle --test races --test races_shared --test races_wishes
}

# cargo_tests FILTER ARG...: cargo's own lines become ours; its counts are taken from its results.
cargo_tests() {
	local filter=$1 status=0 passed failed
	shift
	await "${CARGO[@]}" test --quiet --no-fail-fast "$@" -- --format pretty ${filter:+"$filter"} >"$WORK/host.log" 2>&1 || status=$?
	awk '
		/^test result:/ { passed += $4; failed += $6; next }
		/^test .* \.\.\. ok$/ { sub(/^test /, ""); sub(/ \.\.\. ok$/, ""); print "PASS host " $0; next }
		/^test .* \.\.\. FAILED$/ { sub(/^test /, ""); sub(/ \.\.\. FAILED$/, ""); print "FAIL host " $0; next }
		END { printf "%d %d\n", passed, failed > counts }' counts="$WORK/host.counts" "$WORK/host.log"
	read -r passed failed <"$WORK/host.counts"
	PASSED=$((PASSED + passed)) FAILED=$((FAILED + failed))
	((status == 0)) && return 0
	grep -vE '^test .* \.\.\. (ok|ignored)$' "$WORK/host.log"
	# It can fail without a failed test: it does not build, or a test ended the process.
	((failed > 0)) || fail "host tests: cargo test"
}

run_suite() {
	"$ROOT/tests/qemu/run.sh" "${MACHINE_OPTIONS[@]}" -- "$1" | tee "$WORK/qemu.log" | grep --line-buffered -v '^@counts '
}

qemu_tests() {
	local passed failed
	await run_suite "$1" || true
	read -r _ passed failed < <(grep '^@counts ' "$WORK/qemu.log" || echo "@counts 0 1")
	PASSED=$((PASSED + passed)) FAILED=$((FAILED + failed))
	! grep -q '^SKIP ' "$WORK/qemu.log" || SKIPPED=1
}
