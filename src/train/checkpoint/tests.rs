use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::json;

use super::*;
use crate::device::philox::{Key, Purpose};
use crate::ops::testing::{bits, random};

/// A checkpoint whose content follows from its epoch.
fn sample(epoch: u64) -> Checkpoint {
    let tensors = [("theta.x", [2, 3]), ("exp_avg.x", [1, 2])];
    let tensors = tensors.map(|(name, shape)| (name.to_string(), random(&shape, epoch))).into();
    Checkpoint { tensors, meta: json!({ "epoch": epoch, "third": 1.0 / 3.0, "tiny": 5e-324 }) }
}

fn assert_is(checkpoint: &Checkpoint, epoch: u64) {
    let want = sample(epoch);
    assert_eq!(checkpoint.meta, want.meta);
    assert!(checkpoint.tensors.keys().eq(want.tensors.keys()));
    for (got, want) in checkpoint.tensors.values().zip(want.tensors.values()) {
        assert_eq!((got.shape(), bits(got)), (want.shape(), bits(want)));
    }
}

/// The epoch of the latest checkpoint, which must be whole.
fn latest_epoch(folder: &Path) -> Option<u64> {
    let path = latest(folder).unwrap()?;
    let checkpoint = load(&path).unwrap();
    let epoch = checkpoint.meta["epoch"].as_u64().unwrap();
    assert_is(&checkpoint, epoch);
    Some(epoch)
}

fn visible(folder: &Path) -> Vec<String> {
    let mut names = names_in(folder).unwrap();
    names.sort();
    names
}

#[test]
fn a_checkpoint_comes_back_bit_for_bit_and_the_same_state_gives_the_same_bytes() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let [a, b] = [one.path(), two.path()].map(|d| save(&d.join("checkpoints"), 123, &sample(123), 2).unwrap());
    assert!(a.ends_with("checkpoints/epoch-000123"));
    assert_is(&load(&a).unwrap(), 123);
    for file in [TENSORS, STATE] {
        assert_eq!(fs::read(a.join(file)).unwrap(), fs::read(b.join(file)).unwrap());
    }
    serde_json::from_slice::<Value>(&fs::read(a.join(STATE)).unwrap()).unwrap();
    for path in [one.path(), &one.path().join("checkpoints"), &a] {
        assert_eq!(find(path).unwrap(), a);
    }
    assert!(find(&one.path().join("nothing")).is_err());
    assert!(find(tempfile::tempdir().unwrap().path()).unwrap_err().to_string().contains("neither a checkpoint"));
}

#[test]
fn adapters_are_stored_by_name_and_checked_against_the_config() {
    let module = |name: &str, outputs| Module { name: name.into(), inputs: 3, outputs, trainable: true };
    let modules = [module("l", 4), module("m", 4)];
    let layout = Layout::selected(&modules, &[false, true], 2);
    let numbers = random(&[layout.len()], 1);
    let mut checkpoint = Checkpoint::default();
    checkpoint.insert("old", &numbers, &layout, &modules);
    assert_eq!(checkpoint.tensors.keys().collect::<Vec<_>>(), ["old.m.lora_A.weight", "old.m.lora_B.weight"]);
    let flat = |prefix, layout: &Layout, modules: &[Module]| checkpoint.flat(prefix, layout, modules, &Device::Cpu);
    assert_eq!(bits(&flat("old", &layout, &modules).unwrap()), bits(&numbers));

    let missing = flat("ema", &layout, &modules).err().unwrap();
    assert_eq!(missing.to_string(), "the checkpoint has no tensor 'ema.m.lora_A.weight'");
    let modules = [module("l", 4), module("m", 5)];
    let other = flat("old", &Layout::selected(&modules, &[false, true], 2), &modules).err().unwrap();
    assert!(other.to_string().ends_with("'old.m.lora_B.weight' has shape [4, 2], the config asks for [5, 2]"));
}

#[test]
fn a_flipped_bit_in_any_byte_is_noticed_and_its_file_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = save(dir.path(), 7, &sample(7), 2).unwrap();
    for file in [TENSORS, STATE] {
        let whole = fs::read(path.join(file)).unwrap();
        for byte in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[byte] ^= 1 << (byte % 8);
            fs::write(path.join(file), damaged).unwrap();
            let error = format!("{:#}", load(&path).err().unwrap_or_else(|| panic!("byte {byte} of {file}")));
            assert!(error.contains(&format!("{file} is damaged")) && !error.contains('\n'), "byte {byte}: {error}");
        }
        fs::write(path.join(file), &whole[..whole.len() / 2]).unwrap();
        assert!(load(&path).err().unwrap().to_string().contains(&format!("{file} is damaged")));
        fs::write(path.join(file), whole).unwrap();
    }
    assert_is(&load(&path).unwrap(), 7);
    fs::remove_file(path.join(TENSORS)).unwrap();
    assert!(load(&path).err().unwrap().to_string().ends_with("epoch-000007/state.safetensors"));
}

#[test]
fn a_checkpoint_of_another_format_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = save(dir.path(), 7, &sample(7), 2).unwrap();
    let text = fs::read_to_string(path.join(STATE)).unwrap().replace("\"format\": 1", "\"format\": 2");
    let rest = text.split_once('\n').unwrap().1;
    fs::write(path.join(STATE), format!("{}\n{rest}", first_line(rest))).unwrap();
    let error = load(&path).err().unwrap().to_string();
    assert!(error.ends_with("state.json has checkpoint format 2, this version reads format 1"), "{error}");
}

#[test]
fn the_newest_k_stay_and_an_epoch_can_be_saved_again() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(latest(&dir.path().join("none yet")).unwrap(), None);
    assert_eq!(latest(dir.path()).unwrap(), None);
    for epoch in [1, 2, 5, 9, 9] {
        save(dir.path(), epoch, &sample(epoch), 2).unwrap();
        assert_eq!(latest_epoch(dir.path()), Some(epoch));
    }
    assert_eq!(visible(dir.path()), ["epoch-000005", "epoch-000009", "latest"]);
    // Going back to an earlier state keeps the later one, but resumes from the new one.
    save(dir.path(), 6, &sample(6), 1).unwrap();
    assert_eq!(visible(dir.path()), ["epoch-000006", "epoch-000009", "latest"]);
    assert_eq!(latest_epoch(dir.path()), Some(6));
}

#[test]
fn whatever_a_crash_leaves_behind_the_latest_whole_checkpoint_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    save(dir.path(), 1, &sample(1), 3).unwrap();
    save(dir.path(), 2, &sample(2), 3).unwrap();

    // While the next one is being filled.
    fs::create_dir(at(".epoch-000003.tmp")).unwrap();
    fs::write(at(".epoch-000003.tmp/state.safetensors"), [0; 9]).unwrap();
    assert_eq!(latest_epoch(dir.path()), Some(2));
    // After it got its name, before the pointer moved.
    fs::write(at("latest"), "epoch-000001\n").unwrap();
    assert_eq!(latest_epoch(dir.path()), Some(1));
    // The pointer is lost, empty, damaged, or names what is not there.
    for pointer in ["", "epoch-0000", "epoch-000009\n", "..", "EPOCH-000001\n"] {
        fs::write(at("latest"), pointer).unwrap();
        assert_eq!(latest_epoch(dir.path()), Some(2), "{pointer:?}");
    }
    fs::remove_file(at("latest")).unwrap();
    assert_eq!(latest_epoch(dir.path()), Some(2));
    // Without a pointer a damaged one is passed over.
    fs::write(at("epoch-000002/state.json"), "{}").unwrap();
    assert_eq!(latest_epoch(dir.path()), Some(1));

    // The next save cleans up, and one that was stepping aside comes back first.
    fs::rename(at("epoch-000001"), at(".epoch-000001.replaced")).unwrap();
    fs::write(at("latest"), "epoch-000001\n").unwrap();
    assert_eq!(latest_epoch(dir.path()), Some(1));
    fs::remove_file(at("latest")).unwrap();
    assert_eq!(latest_epoch(dir.path()), Some(1));
    save(dir.path(), 3, &sample(3), 3).unwrap();
    assert_eq!(visible(dir.path()), ["epoch-000001", "epoch-000002", "epoch-000003", "latest"]);
    assert_is(&load(&at("epoch-000001")).unwrap(), 1);

    // Nothing whole at all is an error, not a fresh start.
    for epoch in [1, 3] {
        fs::write(at(&folder_name(epoch)).join(STATE), "{}").unwrap();
    }
    fs::remove_file(at("latest")).unwrap();
    assert!(latest(dir.path()).unwrap_err().to_string().contains("epoch-000003/state.json is damaged"));
}

#[test]
fn what_a_kill_left_undone_after_the_last_save_is_done_by_the_next_process() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for epoch in [1, 2, 3, 4] {
        save(dir.path(), epoch, &sample(epoch), 4).unwrap();
    }
    // Half removed, half written, and on its way to be replaced.
    fs::rename(at("epoch-000001"), at(".epoch-000001.tmp")).unwrap();
    fs::create_dir(at(".epoch-000005.tmp")).unwrap();
    fs::rename(at("epoch-000004"), at(".epoch-000004.replaced")).unwrap();
    finish(dir.path(), 4, 2).unwrap();
    assert_eq!(visible(dir.path()), ["epoch-000003", "epoch-000004", "latest"]);
    assert_eq!(latest_epoch(dir.path()), Some(4));
}

#[test]
fn a_save_that_fails_names_the_path_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    save(dir.path(), 1, &sample(1), 1).unwrap();
    // A file where the new folder has to go stands for every way a folder can refuse to be written.
    fs::write(dir.path().join(".epoch-000002.tmp"), "").unwrap();
    let error = save(dir.path(), 2, &sample(2), 1).unwrap_err().to_string();
    assert!(error.starts_with("cannot create ") && error.contains(".epoch-000002.tmp"), "{error}");
    assert_eq!(latest_epoch(dir.path()), Some(1));

    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let error = save(&file.join("checkpoints"), 1, &sample(1), 1).unwrap_err().to_string();
    assert!(error.starts_with("cannot create ") && error.ends_with("file/checkpoints"), "{error}");
}

const FOLDER: &str = "ENGINE_TEST_CHECKPOINTS";

/// Not a test but the victim of the next one.
#[test]
#[ignore = "runs only as a child of the test below"]
fn child_that_saves_until_it_is_killed() {
    let Some(folder) = std::env::var_os(FOLDER).map(PathBuf::from) else { return };
    let start = latest_epoch(&folder).unwrap_or(0);
    // Every epoch twice, so that the kill also hits replacements.
    for i in 2 * start.. {
        save(&folder, i / 2, &sample(i / 2), 2).unwrap();
    }
}

#[test]
fn kills_at_random_moments_always_leave_the_newest_saved_state() {
    let dir = tempfile::tempdir().unwrap();
    let mut random = Key::new(1, Purpose::SamplerNoise).stream();
    let (mut reached, mut round) = (0, 0);
    // A little longer each round, so that a slow machine gets somewhere too.
    while round < 20 || reached < 4 {
        round += 1;
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "train::checkpoint::tests::child_that_saves_until_it_is_killed"])
            .env(FOLDER, dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(20 + round + u64::from(random.below(60))));
        assert!(child.try_wait().unwrap().is_none(), "round {round}: the child ended by itself");
        child.kill().unwrap();
        child.wait().unwrap();
        let epoch = latest_epoch(dir.path()).unwrap_or(0);
        assert!(epoch >= reached, "round {round}: {epoch} after {reached}");
        reached = epoch;
    }
}
