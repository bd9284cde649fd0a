# shellcheck shell=bash
# `scale`: does a page cost more where memory is larger, or where more CPUs fault? Sourced by qemu-run.sh.
#
# The built-in program `scale` measures, in exact instruction counts; its head says what each row is. `scale memory` runs
# it with 64 MiB to 8 GiB (--memory: no more than that), a quarter more pages than are free, `scale spaces` on 1, 2 and
# 4 CPUs with a process for each, both with single pages and with what folios the kernel chooses. Exit status 1 if a row
# grows by 10 % or more over its first column. `scale policies` is another table: each policy of replacement with twice
# the pages that are free. What a table says of its machines itself is refused on the command line, and so is a cap,
# under which none of them would be full.
# shellcheck disable=SC2034 # run_program looks at what is set here

readonly SCALE_MIB=(64 512 2048 8192) SCALE_CPUS=(1 2 4) MOST_GROWTH=10 POLICY_ROUNDS=8

cmd_scale() {
	local what=${1:-both} status=0 lists=(0 '') # single pages, then what the kernel chooses
	[[ -z $STATS$DRY_RUN$SELFTEST ]] || die "scale takes no --stats, --dry-run, --selftest"
	[[ $what =~ ^(both|memory|spaces|policies)$ ]] || die "scale: memory, spaces or policies, not '$what'"
	[[ -z $CAP ]] || die "scale takes no --cap"
	case $what in
	memory) no_option_of_a_table "$what" --swap ;;
	spaces) no_option_of_a_table "$what" --swap --memory --cpus ;;
	both) no_option_of_a_table "" --swap --cpus ;;
	policies) no_option_of_a_table "$what" --swap --policy ;;
	esac
	if [[ $what == both || $what == memory ]] && ((${MEMORY_GIVEN:-8192} < SCALE_MIB[0])); then
		die "scale measures from --memory ${SCALE_MIB[0]} on, not $MEMORY_GIVEN"
	fi
	[[ -z $FOLIO_ORDERS ]] || lists=("$FOLIO_ORDERS")
	COLLAPSE_MS=${COLLAPSE_MS:-0} QUIET=1
	work_dir
	[[ -n $NO_BUILD ]] || build_all
	NO_BUILD=1
	[[ $what != both && $what != memory ]] || scale_memory "${MEMORY_GIVEN:-8192}" || status=$?
	((status < 2)) && [[ $what == both || $what == spaces ]] && { scale_spaces || status=$?; }
	((status < 2)) && [[ $what == policies ]] && { scale_policies || status=$?; }
	return "$status"
}

# no_option_of_a_table TABLE OPTION...: dies if one of these was given.
no_option_of_a_table() {
	local table=$1 option
	shift
	for option; do
		[[ " ${MACHINE_OPTIONS[*]} " != *" $option "* ]] || die "scale${table:+ $table} takes no $option"
	done
}

# scale_once COLUMN ARG...: runs the program; its lines go to $WORK/scale.tsv as name, KiB of a folio, column, figure.
scale_once() {
	local column=$1
	shift
	run_program scale "$@" >"$WORK/scale.out" || die "the program's status is $?, with $column"
	grep -q '^@' "$WORK/scale.out" || die "no figures, with $column"
	awk -v column="$column" -v OFS='\t' '
		function field(key) {
			match($0, "\"" key "\":(\"[^\"]*\"|[^,}]+)")
			return substr($0, RSTART + length(key) + 3, RLENGTH - length(key) - 3)
		}
		{ name = field("name"); gsub(/"/, "", name) }
		/^@row / { print name, field("folio_kib"), column, field("insns"), field("dearest"), field("in"), field("soon"), field("accesses") }
		/^@part / { # of all processes, from the first begin to the last end
			if (!(name in pages)) { order[++rows] = name; begin[name] = field("begin") }
			if (field("begin") < begin[name]) begin[name] = field("begin")
			if (field("end") > end[name]) end[name] = field("end")
			pages[name] += field("pages"); folio = field("folio_kib")
		}
		END { for (i = 1; i <= rows; i++) { name = order[i]; print name, folio, column, sprintf("%.0f", (end[name] - begin[name]) / pages[name]) } }
	' "$WORK/scale.out" >>"$WORK/scale.tsv"
}

# scale_memory MOST
scale_memory() {
	local mib
	: >"$WORK/scale.tsv"
	for FOLIO_ORDERS in "${lists[@]}"; do
		for mib in "${SCALE_MIB[@]}"; do
			((mib <= $1)) || continue
			# What does not fit into memory is a quarter of it, and swap is never nearly full.
			MEMORY=$mib SWAP=$((mib / 2)) SWAP_AREAS='' scale_once "$mib MiB"
		done
	done
	scale_table "guest instructions an access, a quarter more pages than memory"
}

scale_spaces() {
	local cpus
	: >"$WORK/scale.tsv"
	for FOLIO_ORDERS in "${lists[@]}"; do
		for cpus in "${SCALE_CPUS[@]}"; do
			MEMORY=512 SWAP=256 SWAP_AREAS='' CPUS=$cpus scale_once "$cpus CPUs" --spaces "$cpus"
		done
	done
	scale_table "guest instructions a page, of all CPUs, a process on each"
}

# scale_table TITLE: a line for each row, a column for each size; fails if one grows.
scale_table() {
	awk -F '\t' -v title="$1" -v most="$MOST_GROWTH" '
		{
			row = $1 "\t" $2
			if (!(row in first)) { rows[++n] = row; first[row] = $4 }
			if (!($3 in known)) { columns[++m] = $3; known[$3] }
			cell[row, $3] = $4
			growth = 100 * ($4 / first[row] - 1)
			if (!(row in worst) || growth > worst[row]) worst[row] = growth
		}
		END {
			print title
			printf "%-14s %6s", "name", "folio"
			for (j = 1; j <= m; j++) printf " %9s", columns[j]
			printf " %8s\n", "growth"
			for (i = 1; i <= n; i++) {
				split(rows[i], part, "\t")
				printf "%-14s %5sK", part[1], part[2]
				for (j = 1; j <= m; j++) printf " %9s", cell[rows[i], columns[j]]
				printf " %6.1f %%%s\n", worst[rows[i]], worst[rows[i]] < most ? "" : "  GROWS"
				if (worst[rows[i]] >= most) bad = 1
			}
			exit bad
		}' "$WORK/scale.tsv"
}

scale_policies() {
	: >"$WORK/scale.tsv"
	for FOLIO_ORDERS in "${lists[@]}"; do
		for POLICY in clock generations adaptive; do
			MEMORY=${MEMORY_GIVEN:-64}
			SWAP=$((2 * MEMORY)) SWAP_AREAS=''
			scale_once "$POLICY" --percent 200 --rounds "$POLICY_ROUNDS"
		done
	done
	awk -F '\t' '
		BEGIN {
			print "twice the pages of memory: guest instructions an access, pages that came in and soon, of 100 accesses"
			printf "%-14s %6s %-12s %9s %9s %9s\n", "name", "folio", "policy", "insns", "in", "soon"
		}
		{ printf "%-14s %5sK %-12s %9s %9.1f %9.1f\n", $1, $2, $3, $4, 100 * $6 / $8, 100 * $7 / $8 }' "$WORK/scale.tsv"
}
