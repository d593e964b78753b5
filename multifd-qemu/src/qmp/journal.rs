//! What has been changed in a QEMU, written down before it is: if this process is killed, the next
//! one that comes to the same monitor puts it back.
//!
//! A journal is a file in a private folder, locked for as long as its writer lives: a line of JSON,
//! then a line for each further step. A QEMU is known by its monitor's address and the threads of
//! its virtual processors.

use super::changes::{Changes, Setting, Step};
use super::client::Qmp;
use super::hooks::Hooks;
use super::private_folder;
use crate::qmp::QmpError;
use serde_json::{Value, json};
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// Longest journal read.
const MAX_LEN: u64 = 1 << 20;

/// A journal that lies on the disk.
pub(super) struct Journal {
    path: PathBuf,
    /// Locked.
    file: File,
}

impl Journal {
    /// Writes down what is about to be changed. Where nothing can be written down, it is only said.
    pub(super) fn write(
        qmp: &mut Qmp,
        changes: &Changes,
        hooks: &Hooks,
    ) -> Result<Option<Self>, QmpError> {
        let qemu = identity(qmp)?;
        let written = private_folder::state_folder().and_then(|folder| {
            private_folder::create_locked(&folder, "journal", "json").and_then(
                |(path, mut file)| {
                    file.write_all(format!("{}\n", encode(&qemu, changes)).as_bytes())?;
                    Ok(Self { path, file })
                },
            )
        });
        Ok(written
            .inspect_err(|error| {
                hooks.note(&format!(
                    "if this process is killed, QEMU's settings stay changed: they could not be written down ({error})"
                ));
            })
            .ok())
    }

    /// Adds a step that is about to be taken.
    pub(super) fn add(&self, step: Step) {
        // Without it, the next run leaves the guest as it finds it.
        let _ = (&self.file).write_all(format!("{}\n", step.line()).as_bytes());
    }

    /// The journals of dead processes about this QEMU, with what they had changed. Those about
    /// QEMUs of this machine that have ended are removed, and those whose writers died before
    /// anything was changed.
    pub(super) fn left_behind(qmp: &mut Qmp) -> Result<Vec<(Self, Changes)>, QmpError> {
        let mut found = Vec::new();
        let mut qemu = None;
        for (path, mut file) in private_folder::unlocked("journal") {
            let mut text = String::new();
            let read = Read::by_ref(&mut file)
                .take(MAX_LEN)
                .read_to_string(&mut text);
            let journal = Self { path, file };
            let Some((of, changes)) = read.ok().and_then(|_| decode(&text)) else {
                journal.remove();
                continue;
            };
            if qemu.is_none() {
                qemu = Some(identity(qmp)?);
            }
            if qemu.as_ref() == Some(&of) {
                found.push((journal, changes));
            } else if has_ended(&of) {
                journal.remove();
            }
        }
        Ok(found)
    }

    /// Everything has been put back.
    pub(super) fn remove(self) {
        // One that stays is found again, and finds nothing to put back.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// What tells a QEMU from others: its monitor's address and its virtual processors' threads, with
/// when they were started if they are seen to be a QEMU's here. A QEMU in a container or on another
/// machine counts its threads for itself.
fn identity(qmp: &mut Qmp) -> Result<Value, QmpError> {
    let cpus = qmp.ask("query-cpus-fast", &json!({}))?;
    let threads = cpus.as_array().into_iter().flatten();
    let threads = threads.filter_map(|cpu| cpu.get("thread-id").and_then(Value::as_u64));
    let threads: Vec<Value> = threads
        .map(|thread| json!([thread, started(thread).filter(|_| is_qemu(thread))]))
        .collect();
    Ok(json!({ "monitor": qmp.address(), "threads": threads }))
}

/// Whether a thread of this machine is one of a QEMU.
fn is_qemu(thread: u64) -> bool {
    let program = std::fs::read_link(Path::new("/proc").join(thread.to_string()).join("exe"));
    let name = program
        .ok()
        .and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
    name.is_some_and(|name| {
        name.starts_with("qemu") || name.contains("qemu-system") || name.contains("kvm")
    })
}

/// When a thread of this machine was started, in the kernel's ticks.
fn started(thread: u64) -> Option<u64> {
    let stat =
        std::fs::read_to_string(Path::new("/proc").join(thread.to_string()).join("stat")).ok()?;
    // The name, in parentheses, may hold anything.
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split(' ').nth(19)?.parse().ok()
}

/// Whether a QEMU that ran on this machine does so no more.
fn has_ended(qemu: &Value) -> bool {
    let threads = qemu
        .get("threads")
        .and_then(Value::as_array)
        .into_iter()
        .flatten();
    let mut was_here = false;
    for thread in threads {
        let id = thread.get(0).and_then(Value::as_u64);
        let Some((id, then)) = id.zip(thread.get(1).and_then(Value::as_u64)) else {
            return false;
        };
        was_here = true;
        if started(id) == Some(then) {
            return false;
        }
    }
    was_here
}

fn encode(qemu: &Value, changes: &Changes) -> Value {
    let list = |settings: &[Setting]| -> Value {
        let settings = settings.iter();
        settings
            .map(|s| json!({ "name": s.name, "before": s.before, "ours": s.ours }))
            .collect()
    };
    json!({
        "qemu": qemu,
        "capabilities": list(&changes.capabilities),
        "parameters": list(&changes.parameters),
        "resume": changes.resume,
        "outlives_us": changes.outlives_us,
    })
}

fn decode(text: &str) -> Option<(Value, Changes)> {
    let (first, steps) = text.split_once('\n')?;
    let has = |step: Step| steps.lines().any(|line| line == step.line());
    let value: Value = serde_json::from_str(first).ok()?;
    let list = |name: &str| -> Option<Vec<Setting>> {
        let settings = value.get(name)?.as_array()?.iter();
        settings
            .map(|s| {
                Some(Setting {
                    name: s.get("name")?.as_str()?.into(),
                    before: s.get("before")?.clone(),
                    ours: s.get("ours")?.clone(),
                })
            })
            .collect()
    };
    let changes = Changes {
        capabilities: list("capabilities")?,
        parameters: list("parameters")?,
        resume: value.get("resume")?.as_bool()?,
        // Those of an older version do not say.
        outlives_us: value.get("outlives_us").and_then(Value::as_bool) == Some(true),
        migrated: has(Step::Migrate),
        stopped: has(Step::Stop),
    };
    Some((value.get("qemu")?.clone(), changes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_reads_as_it_was_written() {
        let changes = Changes {
            capabilities: vec![Setting {
                name: "multifd".into(),
                before: false.into(),
                ours: true.into(),
            }],
            parameters: vec![Setting {
                name: "max-bandwidth".into(),
                before: 134_217_728.into(),
                ours: 0.into(),
            }],
            resume: true,
            outlives_us: true,
            ..Changes::default()
        };
        let qemu = json!({ "monitor": "unix:/s", "threads": [[17, 4711], [18, null]] });
        let mut text = format!("{}\n", encode(&qemu, &changes));
        assert_eq!(decode(&text), Some((qemu.clone(), changes.clone())));
        text.push_str("migrate\nsto");
        let migrated = Changes {
            migrated: true,
            ..changes
        };
        assert_eq!(
            decode(&text),
            Some((qemu, migrated)),
            "a line that was cut off says nothing"
        );
        assert_eq!(decode("{}\n"), None);
        assert_eq!(decode("not JSON\n"), None);
        assert_eq!(decode(text.split_once('\n').unwrap().0), None);
    }

    #[test]
    fn a_thread_is_known_by_when_it_was_started() {
        let own = u64::from(std::process::id());
        let started = started(own).unwrap();
        assert!(!has_ended(&json!({ "threads": [[own, started]] })));
        assert!(!is_qemu(own));
        assert!(has_ended(&json!({ "threads": [[own, started + 1]] })));
        assert!(has_ended(&json!({ "threads": [[u64::MAX, 1]] })));
        // Of another machine, or none that is known: nobody can say.
        assert!(!has_ended(&json!({ "threads": [[own, null]] })));
        assert!(!has_ended(&json!({ "threads": [] })));
    }
}
