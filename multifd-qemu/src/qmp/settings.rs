//! Migration capabilities and parameters: what has to be set for a migration by us, and how to set
//! it back.

use super::changes::{Changes, Setting, Step};
use super::client::Qmp;
use super::hooks::Hooks;
use super::journal::Journal;
use crate::qmp::QmpError;
use multifd_core::event;
use multifd_core::packet::Compression;
use serde_json::{Map, Value, json};
use std::time::{Duration, Instant};

/// Capabilities that may stay on: they change neither the stream nor the way it takes. All others
/// are switched off, also those that only a later QEMU knows.
const HARMLESS: [&str; 5] = [
    "auto-converge",
    "zero-blocks",
    "late-block-activate",
    "validate-uuid",
    "dirty-limit",
];

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

/// The changes that a migration by multifd needs, of what a QEMU has.
fn wanted(found: &Found, channels: u8, compression: Compression) -> Changes {
    let mut changes = Changes::default();
    for (name, state) in &found.capabilities {
        let ours = match name.as_str() {
            // Events say at once that a migration is complete, and the guest need not wait.
            "multifd" | "events" => json!(true),
            _ if HARMLESS.contains(&name.as_str()) => state.clone(),
            _ => json!(false),
        };
        if ours != *state {
            changes.capabilities.push(Setting {
                name: name.clone(),
                before: state.clone(),
                ours,
            });
        }
    }
    for (name, ours) in [
        ("multifd-channels", json!(channels)),
        ("multifd-compression", json!(compression.name())),
        ("zero-page-detection", json!("multifd")),
        ("max-bandwidth", json!(0)),
        ("avail-switchover-bandwidth", json!(0)),
        ("tls-creds", json!("")),
        ("mode", json!("normal")),
        ("direct-io", json!(false)),
    ] {
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
    /// Sets QEMU up for multifd. If that fails half-way, what was changed is put back. `resume`
    /// says whether the guest is to run on if this process does not live to see to it.
    pub(super) fn set_up(
        qmp: &mut Qmp,
        (channels, compression): (u8, Compression),
        resume: bool,
        hooks: &Hooks,
    ) -> Result<Self, QmpError> {
        let found = Found::query(qmp)?;
        let changes = Changes {
            resume,
            ..wanted(&found, channels, compression)
        };
        event!(?channels, ?compression, "QEMU is set up");
        hooks.changed(true);
        let mut this = Self {
            changes,
            journal: None,
            hooks: hooks.clone(),
        };
        this.journal = Journal::write(qmp, &this.changes, hooks)?;
        match this.apply(qmp) {
            Ok(()) => Ok(this),
            Err(error) => {
                this.put_back(qmp)?;
                Err(error)
            }
        }
    }

    fn apply(&self, qmp: &mut Qmp) -> Result<(), QmpError> {
        set_capabilities(
            qmp,
            self.changes.capabilities.iter().map(|s| (&s.name, &s.ours)),
        )?;
        set_parameters(
            qmp,
            self.changes.parameters.iter().map(|s| (&s.name, &s.ours)),
        )
    }

    /// Writes down what is about to be done, for the next run if this one is killed.
    pub(super) fn about_to(&self, step: Step) {
        if let Some(journal) = &self.journal {
            journal.add(step);
        }
    }

    /// Puts everything back as it was.
    pub(super) fn put_back(mut self, qmp: &mut Qmp) -> Result<(), QmpError> {
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

/// The settings that a QEMU has.
struct Found {
    capabilities: Vec<(String, Value)>,
    parameters: Map<String, Value>,
}

impl Found {
    fn query(qmp: &mut Qmp) -> Result<Self, QmpError> {
        let odd = |what: &str| QmpError::Failed(format!("QEMU does not say which {what} it has"));
        let list = qmp.execute("query-migrate-capabilities", &json!({}))?;
        let entry = |entry: &Value| {
            Some((
                entry.get("capability")?.as_str()?.to_owned(),
                entry.get("state")?.clone(),
            ))
        };
        let list = list.as_array().ok_or_else(|| odd("capabilities"))?;
        let parameters = qmp.execute("query-migrate-parameters", &json!({}))?;
        match parameters {
            Value::Object(parameters) => Ok(Self {
                capabilities: list.iter().filter_map(entry).collect(),
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
                on("auto-converge"),
                on("something-new"),
            ],
            parameters: parameters.as_object().unwrap().clone(),
        };
        let changes = wanted(&found, 4, Compression::None);
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
            ["multifd-channels 2 4", "mode \"cpr-reboot\" \"normal\""]
        );
    }
}
