#!/usr/bin/env bash
# What a GPU says of this version, in one call of at most eight minutes. Builds here, runs there:
#
#     tools/gpu_check.sh pack [DIR]      # needs Rust; collects everything in DIR (target/gpu_check)
#     DIR/gpu_check.sh [--device cuda[:N]|vm] [--out DIR] [--seconds N] [--seed N] [--only PART,..]
#
# Nothing is compiled there but by the driver. Results go to --out ($OUT, else DIR/out): a line of JSON each in *.jsonl,
# all of them in gpu_check.json, the tables, printed last, in table.md, and the log of every program. With --device vm, or
# without a GPU, everything is rehearsed at tiny sizes and nothing is measured. Parts: kernels, semantics, same, tests,
# run, variants, bench, torch, sanitizer.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

pack() {
    cd "$here/.."
    local to=${1:-target/gpu_check} built
    rm -rf "$to"
    mkdir -p "$to/bin" "$to/models" "$to/tests/fixtures/preprocess" "$to/tests/fixtures/pipeline" "$to/benches/baselines"
    cargo build --release --bin engine
    cp target/release/engine "$to/bin/engine"
    built=$(cargo test --release --lib --no-run --message-format json | grep '"kind":\["lib"\],"crate_types":\["lib"\],"name":"engine"' | grep -o '"executable":"[^"]*"' | tail -1)
    cp "$(cut -d'"' -f4 <<<"$built")" "$to/bin/tests"
    built=$(cargo bench --bench gpu --no-run --message-format json | grep '"name":"gpu"' | grep -o '"executable":"[^"]*"' | tail -1)
    cp "$(cut -d'"' -f4 <<<"$built")" "$to/bin/gpu"
    strip "$to"/bin/*
    # They are mostly PTX and text of errors: a third when compressed.
    gzip -9 "$to"/bin/*
    cp -r models/tiny-sd3 models/tiny-clip "$to/models/"
    cp -r configs "$to/"
    cp tests/fixtures/blocks.safetensors "$to/tests/fixtures/"
    cp tests/fixtures/preprocess/io.safetensors "$to/tests/fixtures/preprocess/"
    cp -r tests/fixtures/pipeline/no_t5 "$to/tests/fixtures/pipeline/"
    cp benches/baselines/gpu.py "$to/benches/baselines/"
    cp tools/gpu_check.sh "$to/"
    echo "$to: $(du -sm "$to" | cut -f1) MiB, of at most 64"
}

if [[ ${1:-} == pack ]]; then
    pack "${@:2}"
    exit
fi
[[ -d $here/bin ]] || { echo "gpu_check: no bin/ beside this script; 'tools/gpu_check.sh pack' makes a folder that has it" >&2; exit 2; }

# From here on a failure is a line of the table, and what comes after it is done all the same.
set +e
device=cuda out=${OUT:-$here/out} seconds=470 seed=$((RANDOM * 32768 + RANDOM)) only=kernels,semantics,same,tests,run,variants,bench,torch,sanitizer
while (($#)); do
    case $1 in
        --device) device=$2 ;;
        --out) out=$2 ;;
        --seconds) seconds=$2 ;;
        --seed) seed=$2 ;;
        --only) only=$2 ;;
        *) echo "gpu_check: '$1', expected --device, --out, --seconds, --seed or --only" >&2; exit 2 ;;
    esac
    shift 2
done
mkdir -p "$out"
out=$(cd "$out" && pwd)
rm -f "$out"/*.jsonl "$out"/*.log
cd "$here"
gunzip -qf bin/*.gz 2>/dev/null || true
chmod +x bin/*
start=$SECONDS

left() { echo $((seconds - (SECONDS - start))); }
wants() { [[ ,$only, == *,$1,* ]] && (($(left) > 10)); }
# A limit for a program: its own, or what is left.
limit() { local l; l=$(left); echo $((l < $1 ? (l > 1 ? l : 1) : $1)); }
# One line of JSON: name, ok|FAILED|skipped, seconds, detail.
record() {
    local detail
    detail=$(tr -d '\000-\010\013-\037' <<<"$4" | tr '\n\t|' '  /' | sed 's/\\/\\\\/g; s/"/\\"/g' | cut -c1-600)
    printf '{"kind":"check","name":"%s","status":"%s","seconds":%s,"detail":"%s"}\n' "$1" "$2" "$3" "$detail" >>"$out/checks.jsonl"
    printf '%-8s%s (%s s) %s\n' "$2" "$1" "$3" "$(cut -c1-300 <<<"$4")"
}
clocks() {
    command -v nvidia-smi >/dev/null || return 0
    local query=name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,temperature.gpu,power.draw,power.limit,clocks_event_reasons.active
    local said
    said=$(timeout 20 nvidia-smi --query-gpu=$query --format=csv,noheader 2>&1 | head -4) || true
    record "nvidia-smi, $1" ok 0 "$said"
}

# What the driver has compiled is kept for the many programs that follow, and compiled anew the next time.
export CUDA_CACHE_PATH=$out/.cache CUDA_CACHE_MAXSIZE=2147483648
rm -rf "$CUDA_CACHE_PATH"

# Rehearse where there is nothing to measure.
small=() rehearsal=
if [[ $device != vm ]]; then
    at=$SECONDS
    if timeout "$(limit 200)" ./bin/engine doctor --device "$device" >"$out/doctor.log" 2>&1; then
        record "engine doctor --device $device" ok $((SECONDS - at)) "$(grep -E '^ *(device|kernels|libcuda|cuda:)' "$out/doctor.log" | tr -s ' ')"
    else
        why=$(grep -v '^$' "$out/doctor.log" | tail -1)
        echo "gpu_check: no GPU here: $why"
        record "engine doctor --device $device" skipped $((SECONDS - at)) "$why"
        device=vm
    fi
fi
if [[ $device == vm ]]; then
    echo "gpu_check: a rehearsal on the interpreter at tiny sizes; nothing is measured"
    small=(--small) rehearsal=yes
fi
echo "{\"kind\":\"visit\",\"date\":\"$(date -u +%FT%TZ)\",\"device\":\"$device\",\"seed\":$seed,\"host\":\"$(uname -srm)\"}" >"$out/a_visit.jsonl"
clocks before

# kernels: every file of PTX through the driver; semantics: instructions one by one; same: the interpreter's results.
gpu_part() { # PART SECONDS
    local rc=0 at=$SECONDS
    timeout "$(limit "$2")" ./bin/gpu --device "$device" "${small[@]}" --parts "$1" --seed "$seed" --log "$out/engine.jsonl" \
        --seconds "$(limit "$(($2 - 15))")" --scratch "${TMPDIR:-/tmp}" >"$out/$1.log" 2>&1 || rc=$?
    cat "$out/$1.log"
    # Failures of its own are in its lines; anything else that stops it is one more.
    if ((rc)) && ! grep -q '^FAILED' "$out/$1.log"; then
        record "bin/gpu --parts $1" FAILED $((SECONDS - at)) "exit code $rc (124: out of time); $(tail -2 "$out/$1.log")"
    fi
}
if wants kernels; then gpu_part kernels 120; fi
if wants semantics; then gpu_part semantics 60; fi
if wants same; then gpu_part same 60; fi

# The tests of the ops on the GPU, 20 times each where bits must be equal, one process per op: a fault spoils a context. First
# with the inputs they have been seen with, then with fresh ones; of a test that fails with those on the interpreter too, it is
# the bound that does not hold.
op_tests() { # OP SEED
    local op=$1 inputs=$2 at=$SECONDS rc=0 log=$out/tests.$1.$2.log
    ENGINE_TEST_SEED=$inputs timeout "$(limit 100)" ./bin/tests "ops::$op::" --test-threads 4 >"$log" 2>&1 || rc=$?
    if ((rc == 0)); then
        record "tests of $op, seed $inputs" ok $((SECONDS - at)) "$(grep -E '^test result' "$log" | cut -d' ' -f4-5)"
        return
    fi
    local test failed='' loose=''
    for test in $(grep -E '^test .*FAILED$' "$log" | cut -d' ' -f2); do
        if ((inputs)) && ! env -u ENGINE_TEST_DEVICE ENGINE_TEST_SEED="$inputs" timeout "$(limit 40)" ./bin/tests --exact "$test" >/dev/null 2>&1; then
            loose+="$test "
        else
            failed+="$test "
        fi
    done
    if [[ $loose && ! $failed ]]; then
        record "tests of $op, seed $inputs" ok $((SECONDS - at)) "beyond their bounds, on the interpreter too: $loose"
    else
        record "tests of $op, seed $inputs" FAILED $((SECONDS - at)) \
            "exit code $rc; $failed; again: ENGINE_TEST_DEVICE=$device ENGINE_TEST_SEED=$inputs bin/tests ops::${op}::; $(grep 'panicked at' -A1 "$log" | head -4)"
    fi
}
if wants tests; then
    export ENGINE_TEST_ROOT=$here
    if [[ $rehearsal ]]; then
        op_tests gate 0
    else
        export ENGINE_TEST_DEVICE=$device
        for inputs in 0 $((seed % 1000000007)); do
            for op in $(./bin/tests --list --format terse | grep -oE '^ops::[a-z_0-9]+::tests' | cut -d: -f3 | sort -u); do
                while (($(jobs -rp | wc -l) >= 4)); do wait -n; done
                op_tests "$op" "$inputs" &
            done
        done
        wait
    fi
fi

# Whole runs: the same bits twice and without graphs, rollout and training see the same velocities.
whole_run() { # NAME [ENGINE ARGS..]
    local name=$1 at=$SECONDS rc=0
    shift
    rm -rf "$out/run.$name"
    timeout "$(limit 120)" ./bin/engine train --config "$out/run.toml" --output-dir "$out/run.$name" --device "$device" "$@" \
        >"$out/run.$name.log" 2>&1 || rc=$?
    local lines=$out/run.$name/metrics.jsonl deviation
    if ((rc)); then
        record "run $name" FAILED $((SECONDS - at)) "exit code $rc; $(tail -3 "$out/run.$name.log")"
        return
    fi
    deviation=$(grep -oE '"rollout_train_deviation":[^,}]*' "$lines" | cut -d: -f2 | sort -u | tr '\n' ' ')
    if [[ $deviation == "0.0 " ]]; then
        record "run $name: rollout and training agree" ok $((SECONDS - at)) "$(grep -oE '"loss":[^,}]*' "$lines" | tr '\n' ' ')"
    else
        record "run $name: rollout and training agree" FAILED $((SECONDS - at)) "rollout_train_deviation $deviation"
    fi
}
same_state() { # NAME NAME WHAT
    local a b
    a=$(find "$out/run.$1/checkpoints" -name state.safetensors 2>/dev/null | sort | tail -1)
    b=$(find "$out/run.$2/checkpoints" -name state.safetensors 2>/dev/null | sort | tail -1)
    if [[ $a && $b ]] && cmp -s "$a" "$b"; then
        record "run: $3, same bits" ok 0 ""
    else
        record "run: $3, same bits" FAILED 0 "cmp $a $b"
    fi
}
if wants run; then
    model=models/tiny-sd3 resolution=64 prompts=4 epochs=2
    if [[ $rehearsal ]]; then model=tests/fixtures/pipeline/no_t5 resolution=32 prompts=1 epochs=1; fi
    printf 'a red circle\ntwo blue squares\na green field\nthe sun\n' >"$out/prompts.txt"
    cat >"$out/run.toml" <<END
algorithm = "ram"
model = "$here/$model"
num_epochs = $epochs
seed = $((seed % 1000000))
prompts = { train = "$out/prompts.txt", eval = "$out/prompts.txt", max_sequence_length = 4 }
rewards = { jpeg_compressibility = 1.0 }
ram = { reward_multiplier = 5.0, num_noisings = 2 }
lora = { rank = 4, alpha = 8.0 }
eval = { every = 0, num_inference_steps = 2, guidance_scale = 1.0 }
checkpoint = { every = 1, keep = 1 }
rollout = { num_prompts_per_epoch = $prompts, num_images_per_prompt = 3, num_inference_steps = 3, resolution = $resolution, batch_size = 3, guidance_scale = 2.0 }
train = { batch_size = 3 }
END
    whole_run first
    ENGINE_GRAPHS=0 whole_run without_graphs
    same_state first without_graphs "with and without graphs"
    if [[ ! $rehearsal ]]; then
        whole_run second
        same_state first second "twice"
        whole_run bf16 --set train.compute=bf16
        whole_run bf16_again --set train.compute=bf16
        same_state bf16 bf16_again "bf16 twice"
    fi
    rm -rf "$out"/run.*/checkpoints "$out"/run.*/samples "$out"/run.*/lora
fi

if wants variants; then gpu_part variants 75; fi
if wants bench; then gpu_part bench 200; fi
clocks after

# PyTorch on the same machine, if it is there.
if wants torch; then
    if [[ ! $rehearsal ]] && python3 -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null; then
        at=$SECONDS rc=0
        timeout "$(limit 110)" python3 benches/baselines/gpu.py --log "$out/torch.jsonl" --seconds "$(limit 95)" >"$out/torch.log" 2>&1 || rc=$?
        status=ok
        ((rc)) && status=FAILED
        record "benches/baselines/gpu.py" $status $((SECONDS - at)) "$(tail -1 "$out/torch.log")"
    else
        record "benches/baselines/gpu.py" skipped 0 "no PyTorch with a GPU here"
    fi
fi

# What NVIDIA's own tools find in shared memory and barriers, as far as time allows.
if wants sanitizer; then
    if [[ ! $rehearsal ]] && command -v compute-sanitizer >/dev/null; then
        for tool in racecheck synccheck; do
            for op in attention linear conv2d adaln products; do
                (($(left) > 15)) || { record "$tool of $op" skipped 0 "no time was left"; continue; }
                at=$SECONDS rc=0
                ENGINE_TEST_DEVICE=$device ENGINE_TEST_ROOT=$here timeout "$(limit 30)" compute-sanitizer --tool $tool --error-exitcode 9 \
                    ./bin/tests "ops::$op::" --test-threads 1 >"$out/$tool.$op.log" 2>&1 || rc=$?
                found=$(grep -cE '^=+ +(Error|Warning|ERROR|Barrier error)' "$out/$tool.$op.log" || true)
                case $rc in
                    0) record "$tool of $op" ok $((SECONDS - at)) "" ;;
                    124) record "$tool of $op" "$( ((found)) && echo FAILED || echo ok)" $((SECONDS - at)) "stopped when its time was up; $found findings" ;;
                    *) record "$tool of $op" FAILED $((SECONDS - at)) "exit code $rc; $found findings; $(grep -E '^=' "$out/$tool.$op.log" | sed -n 2,3p)" ;;
                esac
            done
        done
    else
        record "compute-sanitizer" skipped 0 "not here, or a rehearsal"
    fi
fi

rm -rf "$out/.cache"
./bin/gpu --table "$out" | tee "$out/table.md"
echo "$((SECONDS - start)) s, seed $seed; results in $out"
! grep -q '"status":"FAILED"' "$out"/*.jsonl
