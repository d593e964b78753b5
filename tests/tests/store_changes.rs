//! Stores that are damaged, encrypted, copied and exported.
#![allow(clippy::unwrap_used, clippy::panic)]

mod snapshot_steps;

use multifd_tests::program::{Recv, json, path, run};
use multifd_tests::stores::{Mounted, damage, image, store, walk};
use snapshot_steps::{said, succeed, text};
use std::fs::File;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

#[test]
fn one_manifest_that_cannot_be_read_hides_no_other() {
    let folder = snapshot_steps::folder();
    let place = folder.path();
    let file = image(place, "vm", 16, 4, 1);
    for name in ["a", "b"] {
        succeed(&["store", "import", "-q", text(&file), &store(place, name)]);
    }
    let manifest = place.join("store/snapshots/a");
    let mut bytes = std::fs::read(&manifest).unwrap();
    bytes[40] ^= 1;
    std::fs::write(&manifest, &bytes).unwrap();
    std::fs::write(place.join("store/snapshots/stray"), b"not a manifest").unwrap();
    std::fs::write(place.join("store/snapshots/empty"), b"").unwrap();
    std::fs::write(place.join("store/snapshots/cut"), &bytes[..24]).unwrap();
    for command in ["ls", "stats"] {
        let listed = run(&["store", command, "--json", text(&place.join("store"))]);
        assert_eq!(listed.status.code(), Some(1));
        let listed = json(&listed);
        assert_eq!(
            listed["unreadable"].as_array().unwrap().len(),
            4,
            "{listed}"
        );
        let error = listed["unreadable"][0]["error"].as_str().unwrap();
        assert!(error.contains("snapshots/a"), "{error}");
    }
    let mount = Mounted::start(&place.join("store"), &place.join("mnt"), &[]);
    assert_eq!(std::fs::read_dir(&mount.folder).unwrap().count(), 5);
    assert!(
        std::fs::read(mount.folder.join("b/vm.mapped")).unwrap() == std::fs::read(&file).unwrap()
    );
    assert!(File::open(mount.folder.join("a/vm.mapped")).is_err());
    let unknown = run(&["store", "show", &store(place, "c")]);
    assert!(said(&unknown).contains("it has b"), "{}", said(&unknown));
    // Nobody knows what it needs.
    let refused = run(&["store", "gc", text(&place.join("store"))]);
    assert_eq!(refused.status.code(), Some(1));
}

#[test]
fn an_export_is_whole_or_nothing() {
    let folder = snapshot_steps::folder();
    let place = folder.path();
    let file = image(place, "vm", 16, 4, 1);
    let name = store(place, "vm");
    succeed(&["store", "import", "-q", text(&file), &name]);
    let (out, crc) = (place.join("out"), place.join("out.crc"));
    std::fs::write(&crc, b"another one's").unwrap();
    let refused = run(&["store", "export", "-q", &name, "--out", text(&out)]);
    assert!(!refused.status.success() && !out.exists());
    assert_eq!(std::fs::read(&crc).unwrap(), b"another one's");
    succeed(&[
        "store",
        "export",
        "-q",
        "--force",
        &name,
        "--out",
        text(&out),
    ]);
    assert!(std::fs::read(&out).unwrap() == std::fs::read(&file).unwrap());
    // Checksums that are not this file's are not left beside it.
    let own = std::fs::read(file.with_extension("crc")).ok();
    assert_eq!(std::fs::read(&crc).ok(), own);
}

#[test]
fn what_was_encrypted_is_not_copied_in_the_clear_by_mistake() {
    let folder = snapshot_steps::folder();
    let place = folder.path();
    let file = image(place, "vm", 16, 4, 1);
    let key = place.join("key");
    std::fs::write(&key, "07".repeat(32)).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    let name = store(place, "vm");
    succeed(&[
        "store",
        "import",
        "-q",
        text(&file),
        &name,
        "--key-file",
        text(&key),
    ]);
    let other = place.join("other");
    let copy = [
        "store",
        "copy",
        "-q",
        &name,
        text(&other),
        "--key-file",
        text(&key),
    ];
    let refused = run(&copy);
    assert!(!refused.status.success() && !other.exists());
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        said.contains("--to-key-file") && said.contains("--plain"),
        "{said}"
    );
    succeed(&[&copy[..], &["--plain"]].concat());
    succeed(&["verify", &format!("store:{}#vm", text(&other))]);
    let vault = place.join("vault");
    let to = [
        "store",
        "copy",
        "-q",
        &name,
        text(&vault),
        "--key-file",
        text(&key),
        "--to-key-file",
        text(&key),
    ];
    succeed(&to);
    assert!(!run(&["store", "ls", text(&vault)]).status.success());
}

#[test]
fn an_encrypted_store_needs_its_key_everywhere() {
    let folder = snapshot_steps::folder();
    let place = folder.path();
    let file = image(place, "vm", 16, 4, 1);
    let key = place.join("key");
    let write = |key: &Path, contents: &[u8]| {
        std::fs::write(key, contents).unwrap();
        std::fs::set_permissions(key, PermissionsExt::from_mode(0o600)).unwrap();
    };
    write(&key, &[7; 32]);
    let from = store(place, "vm");
    let with = ["--key-file", text(&key)];
    succeed(&[&["store", "import", "-q", text(&file), &from], &with[..]].concat());
    for args in [
        vec!["store", "ls", text(&place.join("store"))],
        vec!["verify", &from],
        vec!["inspect", &from],
    ] {
        let refused = run(&args);
        assert!(
            said(&refused).contains("--key-file"),
            "{args:?}: {}",
            said(&refused)
        );
        succeed(&[&args[..], &with].concat());
    }
    let out = place.join("out");
    succeed(
        &[
            &["store", "export", "-q", &from, "--out", text(&out)],
            &with[..],
        ]
        .concat(),
    );
    assert!(std::fs::read(&out).unwrap() == std::fs::read(&file).unwrap());
    // Into a store with another key, named by a variable there.
    let second = place.join("key2");
    write(&second, format!("{}\n", "08".repeat(32)).as_bytes());
    let vault = place.join("vault");
    let copy = [
        "store",
        "copy",
        "-q",
        &from,
        text(&vault),
        "--to-key-file",
        text(&second),
    ];
    succeed(&[&copy[..], &with].concat());
    let output = Command::new(path())
        .args(["store", "ls", "--json", text(&vault)])
        .env("MULTIFD_KEY_FILE", &second)
        .output()
        .unwrap();
    assert_eq!(json(&output)["snapshots"][0]["name"], "vm");
    for path in walk(&vault) {
        assert!(!path.display().to_string().ends_with("/vm"));
    }
}

#[test]
fn a_damaged_chunk_is_an_error_that_names_it() {
    let folder = snapshot_steps::folder();
    let place = folder.path();
    let file = image(place, "vm", 16, 4, 1);
    let from = store(place, "vm");
    succeed(&["store", "import", "-q", text(&file), &from]);
    damage(place);
    let checked = run(&["verify", "--json", &from]);
    assert_eq!(checked.status.code(), Some(1));
    let problems = json(&checked)["problems"].clone();
    assert!(
        problems[0].as_str().unwrap().contains("pc.ram at 0x"),
        "{problems}"
    );
    let mount = Mounted::start(&place.join("store"), &place.join("mnt"), &[]);
    let memory = File::open(mount.folder.join("vm/memory")).unwrap();
    let (mut good, mut bad) = (0, 0);
    for at in (0..16 << 20).step_by(64 << 10) {
        let mut out = vec![0; 4096];
        match memory.read_exact_at(&mut out, at) {
            Ok(()) => good += 1,
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(5), "{error}");
                bad += 1;
            }
        }
    }
    assert!(good > 200 && (1..50).contains(&bad), "{good} {bad}");
    drop(memory);
    let (_, log) = mount.end();
    assert!(
        log.contains("vm/memory: chunk ") && log.contains("pc.ram at 0x"),
        "{log}"
    );
    // Sending it, and writing it out, say so as well, and leave nothing behind.
    let out = place.join("out");
    let exported = run(&["store", "export", "-q", &from, "--out", text(&out)]);
    assert!(said(&exported).contains("chunk ") && !out.exists());
    let copy = place.join("copy");
    let recv = Recv::start("tcp:127.0.0.1:0", &copy, &[]);
    let sent = run(&["send", "-q", &from, "--to", &recv.address]);
    assert_eq!(sent.status.code(), Some(1));
    assert!(said(&sent).contains("chunk "), "{}", said(&sent));
    assert!(!recv.finish().status.success() && !copy.exists());
}
