//! What has been changed in a QEMU, written down before it is: if this process is killed, the next one that comes to the same
//! QEMU puts it back.
//!
//! A journal is a file of JSON in a private folder, locked for as long as its writer lives. A QEMU is known by the threads of its
//! virtual processors.

use super::qmp::Qmp;
use super::settings::{Changes, Setting};
use crate::failure::Failure;
use crate::private_folder;
use crate::report;
use serde_json::{Value, json};
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

/// Longest journal read.
const MAX_LEN: u64 = 1 << 20;

/// A journal that lies on the disk.
pub(crate) struct Journal {
    path: PathBuf,
    /// Locked.
    _file: File,
}

impl Journal {
    /// Writes down what is about to be changed. Where nothing can be written down, it is only said.
    pub(crate) fn write(qmp: &mut Qmp, changes: &Changes) -> Result<Option<Self>, Failure> {
        let qemu = identity(qmp)?;
        let written = private_folder::state().and_then(|folder| {
            private_folder::create_locked(&folder, "journal", "json").and_then(|(path, mut file)| {
                file.write_all(encode(&qemu, changes).to_string().as_bytes())?;
                Ok(Self { path, _file: file })
            })
        });
        Ok(written
            .inspect_err(|error| {
                report::note(&format!(
                    "if this process is killed, QEMU's settings stay changed: they could not be written down ({error})"
                ));
            })
            .ok())
    }

    /// The journals of dead processes about this QEMU, with what they had changed. Those about QEMUs that have ended are removed.
    pub(crate) fn left_behind(qmp: &mut Qmp) -> Result<Vec<(Self, Changes)>, Failure> {
        let Ok(folder) = private_folder::state() else {
            return Ok(Vec::new());
        };
        let mut found = Vec::new();
        let mut qemu = None;
        for (path, mut file) in private_folder::unlocked(&folder, "journal") {
            let mut text = String::new();
            let read = Read::by_ref(&mut file).take(MAX_LEN).read_to_string(&mut text);
            let Some((of, changes)) = read.ok().and_then(|_| decode(&text)) else {
                continue;
            };
            if qemu.is_none() {
                qemu = Some(identity(qmp)?);
            }
            let journal = Self { path, _file: file };
            if qemu.as_ref() == Some(&of) {
                found.push((journal, changes));
            } else if has_ended(&of) {
                journal.remove();
            }
        }
        Ok(found)
    }

    /// Everything has been put back.
    pub(crate) fn remove(self) {
        // One that stays is found again, and finds nothing to put back.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// What tells a QEMU from others: its virtual processors' threads, and when they were started, if it runs on this machine.
fn identity(qmp: &mut Qmp) -> Result<Value, Failure> {
    let cpus = qmp.execute("query-cpus-fast", &json!({}))?;
    let threads = cpus.as_array().into_iter().flatten();
    let threads = threads.filter_map(|cpu| cpu.get("thread-id").and_then(Value::as_u64));
    Ok(threads.map(|thread| json!([thread, started(thread)])).collect())
}

/// When a thread of this machine was started, in the kernel's ticks.
fn started(thread: u64) -> Option<u64> {
    let stat = std::fs::read_to_string(Path::new("/proc").join(thread.to_string()).join("stat")).ok()?;
    // The name, in parentheses, may hold anything.
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split(' ').nth(19)?.parse().ok()
}

/// Whether a QEMU that ran on this machine does so no more.
fn has_ended(qemu: &Value) -> bool {
    let threads = qemu.as_array().into_iter().flatten();
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
    })
}

fn decode(text: &str) -> Option<(Value, Changes)> {
    let value: Value = serde_json::from_str(text).ok()?;
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
        };
        let qemu = json!([[17, 4711], [18, null]]);
        assert_eq!(
            decode(&encode(&qemu, &changes).to_string()),
            Some((qemu, changes))
        );
        assert_eq!(decode("{}"), None);
        assert_eq!(decode("not JSON"), None);
    }

    #[test]
    fn a_thread_is_known_by_when_it_was_started() {
        let own = u64::from(std::process::id());
        let started = started(own).unwrap();
        assert!(!has_ended(&json!([[own, started]])));
        assert!(has_ended(&json!([[own, started + 1]])));
        assert!(has_ended(&json!([[u64::MAX, 1]])));
        // Of another machine, or none that is known: nobody can say.
        assert!(!has_ended(&json!([[own, null]])));
        assert!(!has_ended(&json!([])));
    }
}
