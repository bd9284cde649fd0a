# shellcheck shell=bash
# Set-up: what a build and a boot need, found or fetched. Sourced by qemu-run.sh.
#
# Each `need_*` function leaves the machine ready for one job, sets the
# variables named in its comment, and does nothing the second time. On a Debian
# machine (12 or newer) with root rights it installs packages; everywhere else it
# finds what is there or dies with one line that says what is missing.
#
# Nothing of the machine's own configuration is changed: a QEMU that Debian 12 has
# only in its backports suite is unpacked beside the system, with a package
# configuration of its own.
# shellcheck disable=SC2034 # the variables are used by the other files

readonly TARGET=aarch64-unknown-none-softfloat
readonly QEMU_CACHE=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/ebbtide/qemu

have() { command -v "$1" >/dev/null 2>&1; }

# Can this machine be given packages?
can_install() { [[ -r /etc/debian_version && $(id -u) == 0 ]] && have apt-get; }

# The package index is read once per run of the script, and only if something is missing.
apt_updated=
apt_update() {
	[[ -z $apt_updated ]] || return 0
	note "reading the package index"
	apt-get update -qq >/dev/null || die "apt-get update failed"
	apt_updated=1
}

# install PACKAGE...: by apt, quietly; dies if it cannot.
install() {
	can_install || die "missing: $* (install them, or run as root on Debian 12 or newer)"
	apt_update
	note "installing $*"
	DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends --no-upgrade "$@" >/dev/null 2>&1 ||
		die "could not install $*"
}

# need_command COMMAND PACKAGE
need_command() { have "$1" || install "$2"; }

# ---- Rust -------------------------------------------------------------------

# Does the rustc at $1 have core for the target, built or as source?
rust_has_target() { [[ -d $("$1" --print target-libdir --target "$TARGET" 2>/dev/null) ]]; }
rust_has_source() { [[ -f $("$1" --print sysroot 2>/dev/null)/lib/rustlib/src/rust/library/Cargo.lock ]]; }

# Is the rustc at $1 as new as Cargo.toml asks?
rust_is_new() {
	local found
	found=$("$1" --version 2>/dev/null | awk '{ print $2 }')
	[[ -n $found && $(printf '%s\n' "$RUST_VERSION" "$found" | sort -V | head -n 1) == "$RUST_VERSION" ]]
}
RUST_VERSION=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' "$ROOT/Cargo.toml")

# need_rust: a cargo that can build for the host and for the target.
# Sets CARGO, CLIPPY, FMT (commands) and TARGET_ENV (variables for target builds).
need_rust() {
	[[ -z ${CARGO:-} ]] || return 0
	TARGET_ENV=()
	if have rustc && have cargo && rust_has_target rustc && rust_is_new rustc; then
		CARGO=(cargo) CLIPPY=(cargo clippy) FMT=(cargo fmt)
		return
	fi
	if ! { [[ -x /usr/bin/cargo ]] && rust_has_source /usr/bin/rustc && rust_is_new /usr/bin/rustc && have ld.lld; }; then
		if ! can_install; then
			die "missing: Rust $RUST_VERSION or newer with the target $TARGET (with rustup: rustup target add $TARGET)"
		fi
		install rustc-web cargo-web rust-web-src lld ca-certificates
		rust_is_new /usr/bin/rustc ||
			die "/usr/bin/rustc is $(/usr/bin/rustc --version), but Rust $RUST_VERSION or newer is needed"
	fi
	# A rustup of the machine must not get in between: its compiler and this source do not fit.
	export PATH=/usr/bin:$PATH
	CARGO=(/usr/bin/cargo)
	CLIPPY=(/usr/bin/cargo-clippy clippy)
	FMT=(/usr/bin/cargo-fmt fmt)
	TARGET_ENV=(
		RUSTC_BOOTSTRAP=1
		CARGO_UNSTABLE_BUILD_STD='core,alloc,compiler_builtins'
		CARGO_TARGET_AARCH64_UNKNOWN_NONE_SOFTFLOAT_LINKER=ld.lld
	)
}

# need_checkers: clippy and rustfmt to go with it.
need_checkers() {
	need_rust
	if [[ ${CARGO[0]} == /usr/bin/cargo ]]; then
		[[ -x /usr/bin/cargo-clippy && -x /usr/bin/cargo-fmt ]] || install rust-web-clippy rustfmt-web
	else
		"${CLIPPY[@]}" --version >/dev/null 2>&1 || die "missing: clippy (with rustup: rustup component add clippy)"
		"${FMT[@]}" --version >/dev/null 2>&1 || die "missing: rustfmt (with rustup: rustup component add rustfmt)"
	fi
}

# need_objcopy: sets OBJCOPY, a command that takes AArch64 ELF files.
need_objcopy() {
	if have aarch64-linux-gnu-objcopy; then
		OBJCOPY=(aarch64-linux-gnu-objcopy)
	else
		need_command objcopy binutils
		OBJCOPY=(objcopy -I elf64-little)
	fi
}

# need_cc: sets CC_AARCH64, the compiler of the C test programs.
need_cc() {
	need_command aarch64-linux-gnu-gcc gcc-aarch64-linux-gnu
	CC_AARCH64=aarch64-linux-gnu-gcc
}

# ---- QEMU -------------------------------------------------------------------

# qemu_major COMMAND...: the major version, or nothing.
qemu_major() { "$@" --version 2>/dev/null | sed -n '1s/.*version \([0-9]*\)\..*/\1/p'; }

# need_qemu OLD_OK: sets QEMU_CMD. Before 8.0 all granules of a page share one
# tag, so such a QEMU is taken only if OLD_OK is not empty.
need_qemu() {
	local old_ok=$1 major
	if [[ -n ${QEMU:-} ]]; then
		have "$QEMU" || die "QEMU=$QEMU: no such command"
		QEMU_CMD=("$QEMU")
	else
		find_qemu "$old_ok" || fetch_qemu
		return
	fi
	major=$(qemu_major "${QEMU_CMD[@]}" || true)
	[[ -n $major ]] || die "$QEMU is not a QEMU that runs here"
	((major >= 8)) || [[ -n $old_ok ]] ||
		die "$QEMU is version $major, whose MTE is broken: 8.0 or newer is needed (or --no-mte)"
}

# find_qemu OLD_OK: the system's, if new enough, else the one unpacked before.
find_qemu() {
	local old_ok=$1 major unpacked=$QEMU_CACHE/ready
	major=$(qemu_major qemu-system-aarch64 || true)
	if ((${major:-0} >= 8)) || [[ -n $major && -n $old_ok ]]; then
		QEMU_CMD=(qemu-system-aarch64)
	elif [[ -x $unpacked/usr/bin/qemu-system-aarch64 ]]; then
		QEMU_CMD=("$unpacked/usr/bin/qemu-system-aarch64" -L "$unpacked/usr/share/qemu")
		# Its loadable modules lie elsewhere than it was built for; none is used.
		export QEMU_MODULE_DIR=/nonexistent
	else
		return 1
	fi
}

# fetch_qemu: the system's package where that is new enough, else from backports, unpacked beside.
fetch_qemu() {
	can_install || die "missing: qemu-system-aarch64 8.0 or newer"
	apt_update
	local candidate
	candidate=$(apt-cache policy qemu-system-arm | sed -n 's/^ *Candidate: *\([0-9]*:\)\?\([0-9]*\).*/\2/p')
	if ((${candidate:-0} >= 8)); then
		install qemu-system-arm
	else
		unpack_backports_qemu
	fi
	find_qemu '' || die "no QEMU 8.0 or newer, though one was installed"
}

# main_sources: the entries "URI SUITE [KEYRING]" of the machine's own Debian sources, either format.
main_sources() {
	local files=()
	shopt -s nullglob
	files=(/etc/apt/sources.list.d/*.sources)
	[[ ${#files[@]} == 0 ]] || awk '
		function flush(  i, n, s) {
			n = split(suites, s, " ")
			for (i = 1; i <= n; i++) print uri, s[i], key
			uri = suites = key = ""
		}
		FNR == 1 || /^[ \t]*$/ { flush() }
		/^URIs:/ { uri = $2 }
		/^Suites:/ { sub(/^Suites:[ \t]*/, ""); suites = $0 }
		/^Signed-By:/ && $2 ~ /^\// { key = $2 }
		END { flush() }' "${files[@]}"
	files=(/etc/apt/sources.list /etc/apt/sources.list.d/*.list)
	awk '$1 == "deb" {
		key = ""; line = $0
		if (match(line, /signed-by=[^] ]*/)) key = substr(line, RSTART + 10, RLENGTH - 10)
		sub(/^deb[ \t]+(\[[^]]*\][ \t]*)?/, "", line)
		split(line, f, /[ \t]+/)
		print f[1], f[2], key
	}' "${files[@]}" 2>/dev/null || true
	shopt -u nullglob
}

unpack_backports_qemu() {
	local release uri key work
	# shellcheck source=/dev/null
	release=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
	read -r uri _ key < <(main_sources | awk -v s="$release" '$2 == s' | head -1) ||
		die "no package source for $release found: install qemu-system-aarch64 8.0 or newer"
	[[ -n $key ]] || key=/usr/share/keyrings/debian-archive-keyring.gpg
	[[ -f $key ]] && key="[signed-by=$key]" || key=

	note "fetching QEMU from $release-backports"
	mkdir -p "$QEMU_CACHE"
	rm -rf "$QEMU_CACHE"/fetch.* # of a run that was cut short
	work=$(mktemp -d "$QEMU_CACHE/fetch.XXXXXX")
	mkdir -p "$work"/{lists/partial,archives/partial,deb,tree}
	echo "deb $key $uri $release-backports main" >"$work/sources.list"
	cat >"$work/apt.conf" <<-CONF
		Dir::Etc::sourcelist "$work/sources.list";
		Dir::Etc::sourceparts "-";
		Dir::State::lists "$work/lists";
		Dir::Cache::archives "$work/archives";
		Dir::Cache::pkgcache "$work/pkgcache.bin";
		Dir::Cache::srcpkgcache "$work/srcpkgcache.bin";
		Acquire::Languages "none";
		APT::Sandbox::User "root";
	CONF
	(
		cd "$work/deb"
		export APT_CONFIG=$work/apt.conf
		apt-get update -qq &&
			apt-get download -qq {qemu-system-arm,qemu-system-common,qemu-system-data}/"$release-backports"
	) >/dev/null 2>"$work/log" || die "could not fetch QEMU from $release-backports: $(tail -1 "$work/log")"
	local deb
	for deb in "$work"/deb/*.deb; do dpkg -x "$deb" "$work/tree"; done

	# Its shared libraries come from the system's own packages.
	local libraries
	mapfile -t libraries < <(dpkg-deb -f "$work"/deb/qemu-system-arm_*.deb Depends |
		tr ',' '\n' | sed 's/[ \t]*(.*//; s/|.*//; s/^[ \t]*//' | grep -v '^qemu-' | sort -u)
	if [[ $(ldd "$work/tree/usr/bin/qemu-system-aarch64") == *"not found"* ]]; then
		install "${libraries[@]}"
	fi
	rm -rf "$QEMU_CACHE/ready"
	mv "$work/tree" "$QEMU_CACHE/ready"
	rm -rf "$work"
}
