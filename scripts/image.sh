# shellcheck shell=bash
# From sources to what QEMU boots: kernel Image and initrd. Sourced by qemu-run.sh.

# out_dir: cargo's output folder for the target.
out_dir() {
	local base=${CARGO_TARGET_DIR:-$ROOT/target}
	# The v8.0 build has other compiler flags; in one folder the two would rebuild each other.
	if cpu_is_v80; then base+=/v80; fi
	echo "$base"
}
release_dir() { echo "$(out_dir)/$TARGET/release"; }
# What this script derives from cargo's output.
image_dir() { echo "$(out_dir)/image"; }

target_rustflags() {
	printf %s -Cforce-frame-pointers=yes
	cpu_is_v80 || printf %s ' -Ctarget-feature=+lse'
}

# Flags of the environment would take the place of those above, and a kernel needs its own.
readonly CLEAN_ENV=(-u RUSTFLAGS -u CARGO_ENCODED_RUSTFLAGS -u CARGO_BUILD_RUSTFLAGS)

# cargo_target SUBCOMMAND ARG...: cargo for the target.
cargo_target() {
	await env "${CLEAN_ENV[@]}" "${TARGET_ENV[@]}" \
		CARGO_TARGET_AARCH64_UNKNOWN_NONE_SOFTFLOAT_RUSTFLAGS="$(target_rustflags)" \
		CARGO_TARGET_DIR="$(out_dir)" \
		"$@" --target "$TARGET" --profile "${PROFILE:-release}" --manifest-path "$ROOT/Cargo.toml" 1>&2
}

# build_all: kernel, programs and the Image that this command line asks for.
build_all() {
	need_command cpio cpio
	need_rust
	need_objcopy
	[[ -d $(release_dir) ]] || note "first build: about a minute"
	if [[ -n $KERNEL_ELF ]]; then
		cargo_target "${CARGO[@]}" build --quiet --package user || die "the build failed"
	elif [[ -n $DEV ]]; then
		PROFILE=dev build_kernel --package ebbtide --bin ebbtide-kernel
		cargo_target "${CARGO[@]}" build --quiet --package user || die "the build failed"
	elif [[ -n $SELFTEST ]]; then
		build_kernel --package ebbtide --bin ebbtide-kernel --features selftest
		cargo_target "${CARGO[@]}" build --quiet --package user || die "the build failed"
	else
		build_kernel --workspace
	fi
	make_image
}

# build_kernel ARG...: the kernel that this command line asks for, and what else ARG names. Cargo gives all kernels one
# name and keeps what it made for other features, so each is copied away after its build, before another run of this
# script can build the next.
build_kernel() {
	local features=() profile=${PROFILE:-release} built lock
	[[ $GRANULE == 4k ]] || features=(--features "granule-$GRANULE")
	built=$(out_dir)/$TARGET/${profile/#dev/debug}/ebbtide-kernel
	mkdir -p "$(image_dir)" || die "$(image_dir) cannot be made"
	exec {lock}>"$(image_dir)/lock" || die "$(image_dir)/lock cannot be written"
	await flock "$lock"
	cargo_target "${CARGO[@]}" build --quiet "${features[@]}" "$@" || die "the build failed"
	cmp -s "$built" "$(kernel_elf)" || cp "$built" "$(kernel_elf)" || die "$(kernel_elf) cannot be written"
	exec {lock}>&-
}

# build_for_tests: all that the in-QEMU suite runs.
build_for_tests() {
	[[ -z $DEV ]] || { build_all && return; }
	SELFTEST=any build_all
	SELFTEST='' build_all
	build_test_programs
}

# The C programs of tests/programs, each one file.
test_program_dir() { echo "$(image_dir)/programs"; }
build_test_programs() {
	local source
	need_cc
	mkdir -p "$(test_program_dir)" || die "$(test_program_dir) cannot be made"
	for source in "$ROOT"/tests/programs/*.c; do
		build_test_program "$source" "$(basename "$source" .c)" -static -Wl,-z,max-page-size=65536
	done
	# Made for pages of 4 KiB: in a larger one the segments of both meet, and those of the second lie elsewhere than in
	# the file's.
	source=$ROOT/tests/programs/hello.c
	build_test_program "$source" hello-4k -static -Wl,-z,max-page-size=4096
	build_test_program "$source" hello-4k-odd -static -Wl,-z,max-page-size=4096 -Wl,-Ttext-segment=0x401000
	# For any place in memory; it needs no relocation.
	build_test_program "$ROOT/tests/programs/brk.c" brk-pie -static-pie -fPIE -Wl,-z,max-page-size=65536
}

# build_test_program SOURCE NAME FLAG...
build_test_program() {
	local source=$1 program file newer=
	program=$(test_program_dir)/$2
	shift 2
	for file in "$source" "$ROOT"/tests/programs/*.h; do
		[[ $program -nt $file ]] || newer=1
	done
	[[ -n $newer ]] || return 0
	"$CC_AARCH64" -O2 -Wall -Wextra -Werror -ffreestanding -fno-stack-protector -nostdlib "$@" \
		-o "$program" "$source" || die "$source does not compile"
}

# kernel_elf: the file with the symbols of the kernel to boot.
kernel_elf() {
	if [[ -n $KERNEL_ELF ]]; then
		echo "$KERNEL_ELF"
	elif [[ -n $DEV ]]; then
		echo "$(image_dir)/dev-$GRANULE.elf"
	elif [[ -n $SELFTEST ]]; then
		echo "$(image_dir)/selftest-$GRANULE.elf"
	else
		echo "$(image_dir)/kernel-$GRANULE.elf"
	fi
}

# make_image: the raw Image beside the kept ELF, if that is newer.
make_image() {
	local elf image
	elf=$(kernel_elf)
	if [[ -n $KERNEL_ELF ]]; then
		work_dir
		image=$WORK/kernel.img
	else
		image=${elf%.elf}.img
	fi
	[[ $image -nt $elf ]] || {
		"${OBJCOPY[@]}" -O binary "$elf" "$image.$$" || die "$elf: not a kernel"
		mv "$image.$$" "$image" || die "$image cannot be written"
	}
}

# The built-in programs are the bins of the package `user`.
built_ins() {
	local file
	for file in "$ROOT"/user/src/bin/*; do
		[[ ! -e $file ]] || basename "$file" .rs
	done
}

# Is $1 a 64-bit little-endian AArch64 executable, at a fixed place or at any (ET_EXEC, ET_DYN)?
is_aarch64_elf() {
	[[ $(od -An -tx1 -N6 "$1" 2>/dev/null | tr -d ' \n') == 7f454c460201 ]] &&
		[[ $(od -An -tx1 -j16 -N4 "$1" | tr -d ' \n') == 0[23]00b700 ]]
}

# pick_program NAME: sets PROGRAM_FILE and KERNEL_IMAGE. A file goes before a built-in of that name.
pick_program() {
	if [[ -f $1 ]]; then
		PROGRAM_FILE=$1
	elif [[ -f $(release_dir)/$1 && $'\n'$(built_ins)$'\n' == *$'\n'"$1"$'\n'* ]]; then
		PROGRAM_FILE=$(release_dir)/$1
	else
		die "$1: no such file, and no built-in program of that name"
	fi
	KERNEL_IMAGE=$(kernel_elf)
	if [[ -n $KERNEL_ELF ]]; then
		[[ -f ${WORK:-}/kernel.img ]] || { need_objcopy && make_image; }
		KERNEL_IMAGE=$WORK/kernel.img
	else
		KERNEL_IMAGE=${KERNEL_IMAGE%.elf}.img
	fi
	[[ -f $KERNEL_IMAGE ]] || die "the kernel is not built"
}

# pack_initrd FILE PROGRAM [ARG...]
pack_initrd() {
	local file=$1 tree=$WORK/initrd name
	shift
	mkdir -p "$tree/bin" || die "$tree cannot be made"
	for name in $(built_ins); do
		[[ ! -f $(release_dir)/$name ]] || cp "$(release_dir)/$name" "$tree/bin/$name" || die "$name cannot be copied"
	done
	cp -- "$PROGRAM_FILE" "$tree/init" || die "$PROGRAM_FILE cannot be copied"
	{
		printf '%s\0' "$@" >"$tree/argv" &&
			printf '%s\0' PATH=/bin HOME=/ >"$tree/envp" &&
			printf %s "$WORK/end" >"$tree/end-path" &&
			{ [[ -z $STATS ]] || printf %s "$STATS" >"$tree/stats-path"; }
	} || die "$tree cannot be written"
	if [[ -n $STATS ]]; then
		# What an earlier run left must not look like this one's.
		[[ -n $DRY_RUN ]] || : >"$STATS" || die "--stats $STATS: cannot be written"
	fi
	(cd "$tree" && find . -mindepth 1 -printf '%P\n' | LC_ALL=C sort |
		cpio --quiet -o -H newc -R 0:0 >"$file") || die "could not pack the initrd"
}
