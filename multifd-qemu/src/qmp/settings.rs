//! Migration capabilities and parameters: what has to be set for a migration by us, and how to set
//! it back.

use super::changes::{Changes, Setting, Step};
use super::client::Qmp;
use super::hooks::Hooks;
use super::journal::Journal;
use super::way::Way;
use crate::qmp::QmpError;
use multifd_core::event;
use serde_json::{Map, Value, json};
use std::time::{Duration, Instant};

/// How long a migration into a file may go on whose client has been killed, and after how many
/// rounds its guest is stopped.
const OUTLIVING: Duration = Duration::from_secs(600);
const MAX_ROUNDS: u64 = 20;

/// How long a migration may go on whose other end has been killed.
const DYING: Duration = Duration::from_secs(5);

/// A QEMU that has been set up for a migration. It must be put back with [`Changed::put_back`];
/// what could not be is left to the next run, by its journal.
pub(super) struct Changed {
    changes: Changes,
    journal: Option<Journal>,
    hooks: Hooks,
}

impl Drop for Changed {
    fn drop(&mut self) {
        self.hooks.changed(false);
    }
}

/// The changes that a migration needs, of what a QEMU has.
fn wanted(found: &Found, way: Way) -> Changes {
    let mut changes = Changes {
        outlives_us: way.outlives_us(),
        ..Changes::default()
    };
    for (name, state) in &found.capabilities {
        let ours = way
            .capability(name)
            .map_or_else(|| state.clone(), Value::from);
        if ours != *state {
            changes.capabilities.push(Setting {
                name: name.clone(),
                before: state.clone(),
                ours,
            });
        }
    }
    for (name, ours) in way.parameters() {
        // A QEMU that does not know a parameter does not name it.
        if let Some(before) = found.parameters.get(name).filter(|&before| *before != ours) {
            changes.parameters.push(Setting {
                name: name.into(),
                before: before.clone(),
                ours,
            });
        }
    }
    changes
}

impl Changed {
    /// Sets QEMU up for a migration. If that fails half-way, what was changed is put back. `resume`
    /// says whether the guest is to run on if this process does not live to see to it.
    pub(super) fn set_up(
        qmp: &mut Qmp,
        way: Way,
        resume: bool,
        hooks: &Hooks,
    ) -> Result<Self, QmpError> {
        let found = Found::query(qmp)?;
        let changes = Changes {
            resume,
            ..wanted(&found, way)
        };
        event!(?way, "QEMU is set up");
        hooks.changed(true);
        let mut this = Self {
            changes,
            journal: None,
            hooks: hooks.clone(),
        };
        this.journal = Journal::write(qmp, &this.changes, hooks)?;
        match this.apply(qmp, way) {
            Ok(()) => Ok(this),
            Err(error) => {
                this.put_back(qmp)?;
                Err(match error {
                    QmpError::Monitor { why, .. } if way == Way::Background => {
                        QmpError::Refused(format!(
                            "this QEMU cannot take a snapshot in the background: {why}. Its memory must be private (no \
                             share=on), and the host must let it use userfaultfd: as root, or with \
                             vm.unprivileged_userfaultfd=1"
                        ))
                    }
                    other => other,
                })
            }
        }
    }

    fn apply(&self, qmp: &mut Qmp, way: Way) -> Result<(), QmpError> {
        let capabilities = |qmp: &mut Qmp| {
            let all = self.changes.capabilities.iter();
            set_capabilities(qmp, all.map(|s| (&s.name, &s.ours)))
        };
        let parameters = |qmp: &mut Qmp| {
            let all = self.changes.parameters.iter();
            set_parameters(qmp, all.map(|s| (&s.name, &s.ours)))
        };
        // Beside mapped-ram QEMU takes no parameters while a compression is still set, and beside
        // some capabilities that were found no compression.
        if matches!(way, Way::File(..)) {
            parameters(qmp)?;
            capabilities(qmp)
        } else {
            capabilities(qmp)?;
            parameters(qmp)
        }
    }

    /// Writes down what is about to be done, for the next run if this one is killed.
    pub(super) fn about_to(&self, step: Step) {
        if let Some(journal) = &self.journal {
            journal.add(step);
        }
    }

    /// Puts everything back as it was.
    pub(super) fn put_back(mut self, qmp: &mut Qmp) -> Result<(), QmpError> {
        Found::ask_ahead(qmp)?;
        let found = Found::query(qmp)?;
        put_back(qmp, &self.changes, &found)?;
        event!("QEMU's settings are put back");
        self.remove_journal();
        Ok(())
    }

    /// QEMU has ended: there is nothing to be put back.
    pub(super) fn forget(mut self) {
        self.remove_journal();
    }

    fn remove_journal(&mut self) {
        if let Some(journal) = self.journal.take() {
            journal.remove();
        }
    }
}

/// Whether a QEMU has a capability, on or off.
#[cfg(feature = "file")]
pub(super) fn knows(qmp: &mut Qmp, capability: &str) -> Result<bool, QmpError> {
    if qmp.capabilities.is_none() {
        Found::ask_ahead(qmp)?;
        Found::query(qmp)?;
    }
    let known = qmp.capabilities.iter().flatten();
    Ok(known.into_iter().any(|known| known == capability))
}

/// The settings that a QEMU has.
struct Found {
    capabilities: Vec<(String, Value)>,
    parameters: Map<String, Value>,
}

impl Found {
    /// Sends the questions ahead.
    fn ask_ahead(qmp: &mut Qmp) -> Result<(), QmpError> {
        let both = ["query-migrate-capabilities", "query-migrate-parameters"];
        qmp.ask_ahead(&both.map(|name| (name, json!({}))))
    }

    fn query(qmp: &mut Qmp) -> Result<Self, QmpError> {
        let odd = |what: &str| QmpError::Failed(format!("QEMU does not say which {what} it has"));
        let list = qmp.ask("query-migrate-capabilities", &json!({}))?;
        let entry = |entry: &Value| {
            Some((
                entry.get("capability")?.as_str()?.to_owned(),
                entry.get("state")?.clone(),
            ))
        };
        let list = list.as_array().ok_or_else(|| odd("capabilities"))?;
        let parameters = qmp.ask("query-migrate-parameters", &json!({}))?;
        let capabilities: Vec<_> = list.iter().filter_map(entry).collect();
        let names = capabilities.iter().map(|(name, _)| name.clone());
        qmp.capabilities = Some(names.collect());
        match parameters {
            Value::Object(parameters) => Ok(Self {
                capabilities,
                parameters,
            }),
            _ => Err(odd("parameters")),
        }
    }

    /// Whether everything is still as we have set it.
    fn is_all_ours(&self, changes: &Changes) -> bool {
        let capabilities = changes.capabilities.iter();
        let parameters = changes.parameters.iter();
        capabilities
            .map(|setting| (setting, self.capability(&setting.name)))
            .chain(parameters.map(|setting| (setting, self.parameters.get(&setting.name))))
            .all(|(setting, found)| found == Some(&setting.ours))
    }

    fn capability(&self, name: &str) -> Option<&Value> {
        let mut all = self.capabilities.iter();
        all.find(|(found, _)| found == name).map(|(_, state)| state)
    }
}

/// Puts back what is still as we have set it; what somebody else has changed since stays. What QEMU
/// refuses does not keep the rest from being put back.
fn put_back(qmp: &mut Qmp, changes: &Changes, found: &Found) -> Result<(), QmpError> {
    let ours = |setting: &&Setting, value: Option<&Value>| value == Some(&setting.ours);
    // Parameters first: some capabilities are refused beside some of ours.
    let parameters = changes.parameters.iter();
    let parameters =
        parameters.filter(|setting| ours(setting, found.parameters.get(&setting.name)));
    let parameters: Vec<Setting> = parameters.cloned().collect();
    let one = each(qmp, &parameters, |qmp, list| {
        set_parameters(qmp, list.iter().map(|s| (&s.name, &s.before)))
    });
    let capabilities = changes.capabilities.iter();
    let capabilities =
        capabilities.filter(|setting| ours(setting, found.capability(&setting.name)));
    let capabilities: Vec<Setting> = capabilities.cloned().collect();
    let other = each(qmp, &capabilities, |qmp, list| {
        set_capabilities(qmp, list.iter().map(|s| (&s.name, &s.before)))
    });
    // And some parameters are refused beside capabilities of ours, such as a compression beside
    // mapped-ram.
    let one = match one {
        Err(QmpError::Monitor { .. }) => each(qmp, &parameters, |qmp, list| {
            set_parameters(qmp, list.iter().map(|s| (&s.name, &s.before)))
        }),
        other => other,
    };
    one.and(other)
}

/// Sets all of a list at once, or, if that is refused, one by one. The first refusal is the one to
/// know.
fn each(
    qmp: &mut Qmp,
    list: &[Setting],
    mut set: impl FnMut(&mut Qmp, &[Setting]) -> Result<(), QmpError>,
) -> Result<(), QmpError> {
    match set(qmp, list) {
        Err(QmpError::Monitor { .. }) if list.len() > 1 => {
            let outcomes: Vec<_> = list
                .iter()
                .map(|one| set(qmp, std::slice::from_ref(one)))
                .collect();
            outcomes.into_iter().collect()
        }
        other => other,
    }
}

/// Puts back what a run that was killed has left changed in this QEMU. Its guest is let run if that
/// run had it stand still, and nobody has come since: a guest that somebody else has stopped stays
/// stopped.
pub(super) fn recover(qmp: &mut Qmp, hooks: &Hooks) -> Result<(), QmpError> {
    for (journal, changes) in Journal::left_behind(qmp)? {
        if changes.outlives_us && changes.migrated {
            let_end(qmp)?;
        }
        wait_for_the_dead(qmp)?;
        hooks.note("an earlier multifd was killed at this QEMU: what it had changed is put back");
        let found = Found::query(qmp)?;
        let untouched = found.is_all_ours(&changes);
        if let Err(error @ QmpError::Monitor { .. }) = put_back(qmp, &changes, &found) {
            // It would be refused the next time, too.
            hooks.note(&format!("not all of it could be: {error}"));
        }
        let ours = match qmp.guest_afterwards()?.as_str() {
            "paused" => changes.stopped,
            "postmigrate" => changes.migrated,
            _ => false,
        };
        if changes.resume && ours && untouched {
            qmp.execute("cont", &json!({}))?;
        }
        journal.remove();
    }
    Ok(())
}

/// Waits for a migration into a file to end, which nobody will name: QEMU 10.0 may crash if it is
/// cancelled. A guest that keeps it from ending is stopped, and runs on afterwards.
fn let_end(qmp: &mut Qmp) -> Result<(), QmpError> {
    let end = Instant::now() + OUTLIVING;
    let mut stopped = false;
    loop {
        let migration = qmp.migration()?;
        if migration.is_over() || Instant::now() >= end {
            return Ok(());
        }
        if migration.progress.rounds > MAX_ROUNDS && !stopped {
            qmp.execute("stop", &json!({}))?;
            stopped = true;
        }
        qmp.pause()?;
    }
}

/// The migration of a run that was killed ends by itself, as its connections have. One that does
/// not is somebody else's.
fn wait_for_the_dead(qmp: &mut Qmp) -> Result<(), QmpError> {
    let end = Instant::now() + DYING;
    loop {
        let migration = qmp.migration()?;
        if migration.is_over() {
            return Ok(());
        }
        if Instant::now() >= end {
            return Err(QmpError::Refused(format!(
                "QEMU is busy with a migration ({}). An earlier multifd was killed at this QEMU; what it had changed is put back \
                 when that is over",
                migration.status
            )));
        }
        qmp.pause()?;
    }
}

fn set_capabilities<'a>(
    qmp: &mut Qmp,
    settings: impl Iterator<Item = (&'a String, &'a Value)>,
) -> Result<(), QmpError> {
    // All at once: some are refused without others.
    let list: Vec<Value> = settings
        .map(|(name, state)| json!({ "capability": name, "state": state }))
        .collect();
    if !list.is_empty() {
        qmp.execute("migrate-set-capabilities", &json!({ "capabilities": list }))?;
    }
    Ok(())
}

fn set_parameters<'a>(
    qmp: &mut Qmp,
    settings: impl Iterator<Item = (&'a String, &'a Value)>,
) -> Result<(), QmpError> {
    let map: Map<String, Value> = settings
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    if !map.is_empty() {
        qmp.execute("migrate-set-parameters", &Value::Object(map))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use multifd_core::packet::Compression;

    #[test]
    fn everything_but_what_is_harmless_is_switched_off() {
        let on = |name: &str| (name.to_owned(), json!(true));
        let off = |name: &str| (name.to_owned(), json!(false));
        let parameters = json!({ "multifd-channels": 2, "max-bandwidth": 0, "mode": "cpr-reboot", "downtime-limit": 300 });
        let found = Found {
            capabilities: vec![
                on("events"),
                off("multifd"),
                on("return-path"),
                on("switchover-ack"),
                off("mapped-ram"),
                off("background-snapshot"),
                on("auto-converge"),
                on("something-new"),
            ],
            parameters: parameters.as_object().unwrap().clone(),
        };
        let changes = wanted(&found, Way::Channels(4, Compression::None));
        let names = |list: &[Setting]| -> Vec<_> {
            list.iter()
                .map(|s| format!("{} {} {}", s.name, s.before, s.ours))
                .collect()
        };
        assert_eq!(
            names(&changes.capabilities),
            [
                "multifd false true",
                "return-path true false",
                "switchover-ack true false",
                "something-new true false"
            ]
        );
        assert_eq!(
            names(&changes.parameters),
            ["mode \"cpr-reboot\" \"normal\"", "multifd-channels 2 4"]
        );
        let switched = |way| names(&wanted(&found, way).capabilities)[..2].to_vec();
        let file = switched(Way::File(4, false));
        assert_eq!(file, ["multifd false true", "return-path true false"]);
        assert!(
            names(&wanted(&found, Way::File(4, false)).capabilities)
                .contains(&"mapped-ram false true".into())
        );
        let background = wanted(&found, Way::Background);
        let background = names(&background.capabilities);
        for expected in ["background-snapshot false true", "auto-converge true false"] {
            assert!(background.contains(&expected.into()), "{background:?}");
        }
        assert!(names(&wanted(&found, Way::Main).parameters).len() == 1);
    }
}
