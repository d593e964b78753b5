//! What a QEMU is asked about its migration, and how one is ended.

use super::client::Qmp;
use super::snapshot::SnapshotProgress;
use crate::qmp::QmpError;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

impl Qmp {
    /// The migration's state in QEMU's words, and why it failed, if it did.
    pub(super) fn migration(&mut self) -> Result<Migration, QmpError> {
        let info = self.ask("query-migrate", &json!({}))?;
        let text = |name: &str| info.get(name).and_then(Value::as_str).map(str::to_owned);
        let ram = |name: &str| {
            let count = info.get("ram").and_then(|ram| ram.get(name));
            count.and_then(Value::as_u64).unwrap_or(0)
        };
        let blockers = info.get("blocked-reasons").and_then(Value::as_array);
        Ok(Migration {
            status: text("status").unwrap_or_else(|| "none".into()),
            error: text("error-desc"),
            progress: SnapshotProgress {
                rounds: ram("dirty-sync-count"),
                ram_bytes: ram("total"),
                remaining_bytes: ram("remaining"),
            },
            port: info
                .pointer("/socket-address/0/port")
                .and_then(Value::as_str)
                .map(str::to_owned),
            downtime: info
                .get("downtime")
                .and_then(Value::as_u64)
                .map(Duration::from_millis),
            blockers: blockers
                .into_iter()
                .flatten()
                .filter_map(|reason| reason.as_str().map(str::to_owned))
                .collect(),
        })
    }

    /// Cancels a migration that is under way, and waits until QEMU is done with it.
    pub(super) fn call_off(&mut self) -> Result<(), QmpError> {
        self.call_off_within(self.deadline)
    }

    /// Cancels a migration that is under way, and waits for QEMU to be done with it. Our
    /// connections should stay open until this returns; whatever a QEMU waits for that is not done
    /// by then, their end ends it.
    ///
    /// QEMU 10.0 dies of an assertion (`yank_unregister_instance`) if a connection breaks off, or
    /// it is told to cancel, while its channels are being set up: it is given time to get over
    /// that.
    pub(super) fn call_off_within(&mut self, time: Duration) -> Result<(), QmpError> {
        let end = Instant::now() + self.deadline;
        while self.migration()?.status == "setup" && Instant::now() < end {
            self.pause()?;
        }
        if self.migration()?.is_over() {
            return Ok(());
        }
        self.execute("migrate_cancel", &json!({}))?;
        let end = Instant::now() + time;
        while !self.migration()?.is_over() && Instant::now() < end {
            self.pause()?;
        }
        Ok(())
    }

    /// The guest's state after a migration: QEMU says that one is over a moment before the guest
    /// leaves the state finish-migrate, and does not let it run before that.
    pub(super) fn guest_afterwards(&mut self) -> Result<String, QmpError> {
        let end = Instant::now() + self.deadline;
        loop {
            let (_, state) = self.guest()?;
            if state != "finish-migrate" || Instant::now() >= end {
                return Ok(state);
            }
        }
    }

    /// Whether a migration is under way, or not cleaned up after yet. QEMU says that one is over
    /// while it still has its connections (`query-yank`). Told to migrate then, QEMU 10.0 refuses,
    /// and takes the refused migration for one that is under way ever after.
    pub(super) fn is_migrating(&mut self) -> Result<bool, QmpError> {
        self.ask_ahead(&["query-migrate", "query-yank"].map(|name| (name, json!({}))))?;
        let over = self.migration()?.is_over();
        let instances = match self.ask("query-yank", &json!({})) {
            // It came with QEMU 6.0.
            Err(QmpError::Monitor { .. }) => Value::Null,
            other => other?,
        };
        let migrates =
            |instance: &Value| instance.get("type").is_some_and(|kind| kind == "migration");
        Ok(!over
            || instances
                .as_array()
                .is_some_and(|list| list.iter().any(migrates)))
    }
}

/// What QEMU says of a migration.
pub(super) struct Migration {
    pub(super) status: String,
    pub(super) error: Option<String>,
    /// How far it is.
    pub(super) progress: SnapshotProgress,
    /// The port a destination listens on.
    pub(super) port: Option<String>,
    /// How long the guest stood still, by QEMU's measure.
    pub(super) downtime: Option<Duration>,
    /// Why QEMU would refuse to migrate.
    pub(super) blockers: Vec<String>,
}

impl Migration {
    /// Whether nothing is under way.
    pub(super) fn is_over(&self) -> bool {
        ["none", "completed", "failed", "cancelled"].contains(&self.status.as_str())
    }
}
