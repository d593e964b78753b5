//! What `--json` prints is what docs/json.schema.json says, and docs/json.md tells of every field.
#![allow(clippy::unwrap_used, clippy::panic)]

use multifd_tests::program::{Recv, json, run};
use multifd_tests::qemu::{Qemu, program, seeded};
use serde_json::{Value, json as object};
use std::path::Path;

fn document(name: &str) -> String {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    std::fs::read_to_string(docs.join(name)).unwrap()
}

fn schema() -> Value {
    serde_json::from_str(&document("json.schema.json")).unwrap()
}

/// Checks an object against one definition of the schema; every field must be known to it.
fn check(name: &str, found: &Value) {
    let mut schema = schema();
    schema.as_object_mut().unwrap().remove("anyOf");
    schema["$ref"] = format!("#/$defs/{name}").into();
    let validator = jsonschema::validator_for(&schema).unwrap();
    let errors: Vec<String> = validator
        .iter_errors(found)
        .map(|error| format!("{}: {error}", error.instance_path))
        .collect();
    assert!(errors.is_empty(), "{name}: {errors:#?}\n{found:#}");
}

fn shown(args: &[&str]) -> Value {
    json(&run(args))
}

#[test]
fn every_command_prints_what_the_schema_says() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("raw"), seeded(4 << 20, 1)).unwrap();
    std::fs::write(path("raw2"), seeded(4 << 20, 2)).unwrap();
    for (raw, file, more) in [
        ("raw", "one", ["--compression", "auto"].as_slice()),
        ("raw2", "two", &["--zero-copy", "auto"]),
    ] {
        let recv = Recv::start("tcp:127.0.0.1:0", Path::new(&path(file)), &[]);
        let args = ["send", "--json", "--raw", &path(raw), "--to", &recv.address];
        check("send", &shown(&[&args[..], more].concat()));
        check("recv", &recv.succeed());
    }
    for compression in ["none", "auto"] {
        let recv = Recv::start("tcp:127.0.0.1:0", Path::new(&path("relayed")), &["--force"]);
        let to = recv.address.clone();
        let relay = Recv::listening(
            None,
            &[
                "relay",
                "--listen",
                "tcp:127.0.0.1:0",
                "--to",
                &to,
                "--compression",
                compression,
            ],
        );
        check(
            "send",
            &shown(&["send", "--json", &path("one"), "--to", &relay.address]),
        );
        check("relay", &relay.succeed());
        check("recv", &recv.succeed());
    }
    let (one, two) = (path("one"), path("two"));
    let inspected = shown(&["inspect", "--json", &one]);
    check("inspect", &inspected);
    assert!(
        inspected["blocks"][0].get("map").is_none(),
        "only when it is asked for"
    );
    let inspected = shown(&["inspect", "--json", "--map", &one]);
    check("inspect", &inspected);
    assert!(
        inspected["blocks"][0]["map"]["stored_percent"]
            .as_array()
            .unwrap()
            .len()
            > 100
    );
    check("verify", &shown(&["verify", "--json", &one]));
    std::fs::remove_file(path("two.crc")).unwrap();
    let problems = shown(&["verify", "--json", "--require-digest", &two]);
    check("verify", &problems);
    assert_eq!(problems["ok"], false);
    check("diff", &shown(&["diff", "--json", &one, &two]));
    check("diff", &shown(&["diff", "--json", "--list", &one, &two]));
    check(
        "extract",
        &shown(&[
            "extract",
            "--json",
            &one,
            "--block",
            "pc.ram",
            "--out",
            &path("block"),
        ]),
    );
    check(
        "demo",
        &shown(&["demo", "--json", "--size", "1M", "--channels", "1"]),
    );
    check("error", &shown(&["inspect", "--json", &path("nothing")]));
    check("error", &shown(&["diff", "--json", &one, &path("nothing")]));
}

#[test]
fn so_do_those_that_talk_to_a_monitor() {
    if program().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (mut source, target) = Qemu::bare_pair(&["-m", "16"], &["-m", "16", "-incoming", "defer"]);
    let monitor = source.monitor.to_str().unwrap().to_owned();
    let running = shown(&[
        "snapshot",
        "--json",
        "--qmp",
        &monitor,
        "--out",
        &path("running"),
    ]);
    check("recv", &running);
    let guest = &running["guest"];
    assert!(
        guest["pause_seconds"].as_f64() >= guest["downtime_seconds"].as_f64(),
        "{guest}"
    );
    // A round more than it may have: the guest is stopped, and when is said.
    let early = shown(&[
        "snapshot",
        "--json",
        "--max-rounds",
        "0",
        "--qmp",
        &monitor,
        "--out",
        &path("early"),
    ]);
    check("recv", &early);
    assert!(early["guest"]["left"] == "running");
    source.execute("stop", &object!({}));
    let stopped = shown(&[
        "snapshot",
        "--json",
        "--qmp",
        &monitor,
        "--out",
        &path("stopped"),
    ]);
    check("recv", &stopped);
    assert_eq!(stopped["guest"]["pause_seconds"], Value::Null);
    check(
        "extract",
        &shown(&[
            "extract",
            "--json",
            &path("running"),
            "--elf",
            &path("core"),
        ]),
    );
    let monitor = target.monitor.to_str().unwrap();
    let restored = shown(&["restore", "--json", "--qmp", monitor, &path("running")]);
    check("send", &restored);
    assert_eq!(
        (&running["by_qemu"], &restored["by_qemu"]),
        (&object!(false), &object!(true))
    );
    drop((source, target));
    // Over sockets, where all is counted; and as a QEMU's RAM.
    let options = shown(&["qemu-options", "--json", &path("running")]);
    check("qemu_options", &options);
    let words: Vec<&str> = options["arguments"]
        .as_array()
        .unwrap()
        .iter()
        .map(|word| word.as_str().unwrap())
        .collect();
    let waiting = ["-m", "16", "-incoming", "defer"];
    for (args, more) in [
        (waiting.as_slice(), ["--via", "socket"].as_slice()),
        (&[&["-m", "16"], words.as_slice()].concat(), &["--instant"]),
    ] {
        let target = Qemu::bare(args);
        let monitor = target.monitor.to_str().unwrap();
        let restored = shown(
            &[
                &["restore", "--json", "--qmp", monitor, &path("running")],
                more,
            ]
            .concat(),
        );
        check("send", &restored);
        assert_eq!(restored["mapped"].is_object(), more == ["--instant"]);
    }
}

#[test]
fn every_field_is_documented() {
    let (schema, text) = (schema(), document("json.md"));
    for (name, definition) in schema["$defs"].as_object().unwrap() {
        let section = text
            .split("\n## ")
            .find(|section| section.starts_with(&format!("`{name}`\n")))
            .unwrap_or_else(|| panic!("{name} has no section"));
        for (field, about) in definition["properties"].as_object().unwrap() {
            assert!(
                section.contains(&format!("\n| `{field}` | ")),
                "{name}.{field}"
            );
            assert!(about["description"].is_string(), "{name}.{field}");
        }
    }
}
