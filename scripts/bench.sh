# shellcheck shell=bash
# `bench`: exact instruction counts beside the floor and Linux. Sourced by qemu-run.sh.
#
# The built-in program `bench` measures; it writes one line for each result,
#   @row {"name": "first_touch", "folio_kib": 4, "tagged": true, "insns_per_page": 412, "floor": 300}
# and this adds Linux's figure from benches/linux-7.2.tsv. Other lines of it are passed on.

cmd_bench() {
	local name=$1 json=$STATS status=0
	STATS= # the rows go there, not the counters
	PROGRAM=(bench)
	COLLAPSE_MS=${COLLAPSE_MS:-0} # nothing else is to be counted
	[[ -z $name ]] || PROGRAM+=("$name")
	work_dir
	: >"$WORK/bench.out"
	local lists=(0 '') # single pages, then what the kernel chooses
	[[ -z $FOLIO_ORDERS ]] || lists=("$FOLIO_ORDERS")
	for FOLIO_ORDERS in "${lists[@]}"; do
		run_program "${PROGRAM[@]}" >>"$WORK/bench.out" || status=$?
		((status == 0)) || break
		# shellcheck disable=SC2034 # run_program looks at it
		NO_BUILD=1
	done
	[[ $status != 0 || -n $SWAP_DEVICE ]] || checked_rows "$name" || status=$?
	if [[ -n $DRY_RUN ]]; then
		cat "$WORK/bench.out"
		return 0
	fi
	grep -v '^@row ' "$WORK/bench.out" || true
	((status == 0)) || return "$status"
	bench_rows "$WORK/bench.out" "$name" >"$WORK/rows.tsv"
	if [[ ! -s $WORK/rows.tsv ]]; then
		echo "qemu-run: no measurement is called '${name:-anything}'" >&2
		return 125
	fi
	bench_table "$WORK/rows.tsv"
	[[ -z $json ]] || bench_json "$WORK/rows.tsv" >"$json"
}

# checked_rows NAME: swap on a device that is checked, as rows of their own; the floor is of one that is not.
checked_rows() {
	local row status=0
	SWAP_DEVICE=checked
	for row in swap_out swap_in; do
		[[ ${row}_checked == *"$1"* ]] || continue
		for FOLIO_ORDERS in "${lists[@]}"; do
			run_program bench "$row" >"$WORK/checked.out" || status=$?
			sed -n "s/\"name\":\"$row\"/\"name\":\"${row}_checked\"/p" "$WORK/checked.out" >>"$WORK/bench.out"
			((status == 0)) || return "$status"
		done
	done
}

# bench_rows FILE NAME: tab-separated name, folio_kib, tagged, ours, floor, Linux (or "null": it was measured with
# pages of 4 KiB only).
bench_rows() {
	awk -v only="$2" -v granule="$GRANULE" -v OFS='\t' '
		function field(key,  s) {
			if (!match($0, "\"" key "\"[ \t]*:[ \t]*(\"[^\"]*\"|[^,} \t\r]+)")) return "null"
			s = substr($0, RSTART, RLENGTH)
			sub(/^"[^"]*"[ \t]*:[ \t]*/, "", s)
			gsub(/"/, "", s)
			return s
		}
		FILENAME == ARGV[1] { if (!/^#/ && NF == 4) linux[$1, $2, $3] = $4; next }
		/^@row / {
			name = field("name"); folio = field("folio_kib"); tagged = field("tagged")
			if (only != "" && index(name, only) == 0) next
			figure = granule == "4k" && (name, folio, tagged) in linux ? linux[name, folio, tagged] : "null"
			print name, folio, tagged, field("insns_per_page"), field("floor"), figure
		}' "$ROOT/benches/linux-7.2.tsv" "$1"
}

bench_table() {
	awk -F '\t' '
		function ratio(a, b) { return (a == "null" || b == "null" || b + 0 == 0) ? "-" : sprintf("%.2f", a / b) }
		function cell(a) { return a == "null" ? "-" : a }
		BEGIN {
			printf "guest instructions per 4 KiB page (mprotect_1_in_16: per call)\n"
			printf "%-22s %6s %7s %9s %9s %11s %9s %11s\n", "name", "folio", "tagged",
				"ours", "floor", "ours/floor", "Linux 7.2", "Linux/ours"
		}
		{
			printf "%-22s %5sK %7s %9s %9s %11s %9s %11s\n", $1, $2, $3 == "true" ? "yes" : "no",
				cell($4), cell($5), ratio($4, $5), cell($6), ratio($6, $4)
		}' "$1"
}

bench_json() {
	awk -F '\t' '
		{
			printf "%s  {\"name\": \"%s\", \"folio_kib\": %s, \"tagged\": %s, \"insns_per_page\": %s, \"floor\": %s, \"linux\": %s}",
				NR == 1 ? "[\n" : ",\n", $1, $2, $3, $4, $5, $6
		}
		END { print "\n]" }' "$1"
}
