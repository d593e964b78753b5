//! `multifd mount`: the snapshots of a store as folders.

use crate::failure::Failure;
use crate::store_args::{MountArgs, Record};
use crate::{report, signals};
use multifd_core::{CancelHandle, Unblock};
use multifd_transport_store::mount::{Mount, MountOptions, Record as Recording};
use serde::Serialize;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

/// How often it is looked whether files are open.
const LOOK: Duration = Duration::from_secs(1);

/// How that begins as text.
pub(crate) const READY: &str = "mounted at ";

/// Printed when the files are there.
#[derive(Serialize)]
struct Mounted {
    ok: bool,
    folder: String,
}

pub(crate) fn run(args: &MountArgs) -> Result<(), Failure> {
    let cancel = signals::cancel_on_signal()?;
    let store = args.key.open(&args.store)?;
    let only = (!args.only.is_empty()).then(|| args.only.clone());
    let options = MountOptions::default()
        .only(only)
        .allow_other(args.allow_other)
        .cache(usize::try_from(args.cache).unwrap_or(usize::MAX))
        .threads(args.threads.map(usize::from))
        .record(match args.record {
            Record::Off => Recording::Off,
            Record::IfNone => Recording::IfNone,
            Record::Always => Recording::Always,
        })
        .replay(!args.no_replay)
        .log(report::log());
    let mount = Mount::start(&store, &args.folder, &options)?;
    if args.show.json || !args.show.quiet {
        let folder = args.folder.display().to_string();
        let text = format!("{READY}{folder}");
        report::print(args.show.json, &Mounted { ok: true, folder }, &text)?;
    }
    wait(&mount, args.idle_exit.map(Duration::from_secs), &cancel);
    mount.unmount();
    Ok(())
}

/// Told when a signal has come.
struct Ended(Sender<()>);

impl Unblock for Ended {
    fn unblock(&self) {
        let _ = self.0.send(());
    }
}

/// Waits for a signal, or until no file has been open for so long.
fn wait(mount: &Mount, idle: Option<Duration>, cancel: &CancelHandle) {
    let (ended, end) = channel();
    let _guard = cancel.also_unblock(Box::new(Ended(ended)));
    loop {
        match end.recv_timeout(LOOK) {
            Err(RecvTimeoutError::Timeout) => {}
            _ => return,
        }
        let over = idle
            .zip(mount.idle())
            .is_some_and(|(limit, idle)| idle >= limit);
        // Others may unmount it, too.
        if over || cancel.error().is_some() || !mount.is_served() {
            return;
        }
    }
}
