//! `multifd restore`: a file into a QEMU that waits for it.

use crate::args::Restore;
use crate::encoding::Encoding;
use crate::failure::Failure;
use crate::monitor::machine;
use crate::monitor::qmp::Qmp;
use crate::monitor::settings::{Changed, recover};
use crate::private_socket::MeetingPlace;
use crate::recv::cancelled;
use crate::send::{self, Way};
use crate::{report, signals, snapshot_file};
use multifd_core::WriteFlags;
use multifd_qemu::{Sent, Snapshot};
use multifd_transport_socket::{Address, SocketTransport};
use serde_json::json;
use std::time::{Duration, Instant};

pub(crate) fn run(args: &Restore) -> Result<(), Failure> {
    let cancel = signals::cancel_on_signal()?;
    let control = &args.control;
    let encoding = Encoding {
        compression: control.compression,
        level: None,
        compress_threads: None,
        checksum: false,
    };
    let encoder = encoding.encoder(Some(control.channels))?;
    let timeout = Duration::from_secs(args.deadlines.timeout);
    let mut qmp = Qmp::connect(&control.qmp, timeout)?;
    recover(&mut qmp)?;
    let (_, status) = qmp.guest()?;
    if status != "inmigrate" {
        return Err(Failure::Other(format!(
            "QEMU does not wait for a migration (its guest is {status}): start it with -incoming defer. Nothing was changed"
        )));
    }
    let mut snapshot = snapshot_file::read(&args.image, args.direct_io)?;
    machine::check_fits(&mut qmp, &snapshot)?;
    snapshot.ram = std::mem::take(&mut snapshot.ram).freeze()?;
    // A QEMU takes no UUID but its own.
    snapshot.uuid = machine::uuid(&mut qmp)?;
    let begun = Instant::now();
    let how = (control.channels, control.compression);
    let changed = Changed::set_up(&mut qmp, how, false)?;
    let sent = give(args, &mut qmp, &snapshot, |transport| {
        let way = Way {
            encoder: &encoder,
            checksums: encoding.checksums(),
            transport,
            channels: control.channels,
            flags: WriteFlags::default(),
            dialect: args.dialect,
            finish: timeout,
        };
        send::give(&snapshot, &way, &cancel, args.show)
    });
    // A QEMU that could not load it has ended, mostly: then there is nothing to put back.
    let put_back = match qmp.guest() {
        Err(Failure::QemuGone { .. }) => {
            changed.forget();
            Ok(())
        }
        Err(error) => Err(error),
        Ok(_) => changed.put_back(&mut qmp),
    };
    let sent = sent.map_err(|error| cancelled(&cancel, error))?;
    put_back?;
    if control.resume && !qmp.guest()?.0 {
        qmp.execute("cont", &json!({}))?;
    }
    let (_, status) = qmp.guest()?;
    send::finish(args.show, &snapshot, &encoder, &sent, begun, (None, Some(status)))
}

/// Has QEMU listen, sends, and waits until it has loaded everything.
fn give(
    args: &Restore,
    qmp: &mut Qmp,
    snapshot: &Snapshot,
    transfer: impl FnOnce(&SocketTransport) -> Result<Sent, Failure>,
) -> Result<Sent, Failure> {
    let place = MeetingPlace::new(args.control.via.as_ref())?;
    qmp.execute("migrate-incoming", &json!({ "uri": place.address.to_string() }))?;
    if args.control.stop {
        // So that it does not run as soon as it is loaded.
        qmp.execute("stop", &json!({}))?;
    }
    let address = listening_on(qmp, &place.address)?;
    let transport = SocketTransport::new(address, args.deadlines.socket());
    let sent = transfer(&transport);
    let timeout = Duration::from_secs(args.deadlines.timeout);
    match wait_loaded(qmp, timeout, sent.is_ok()) {
        // QEMU's own words say more than a connection that broke off.
        Err(error @ Failure::QemuGone { .. }) => Err(Failure::Other(format!(
            "QEMU refused the snapshot of {:?} and has exited; what was wrong with it stands on QEMU's standard error ({error})",
            snapshot.configuration.machine
        ))),
        Err(error) => Err(error),
        Ok(()) => {
            if sent.is_err() {
                report::note("this QEMU takes no other migration: start it anew to try again");
            }
            sent
        }
    }
}

/// Where QEMU listens, with the port it chose.
fn listening_on(qmp: &mut Qmp, asked: &Address) -> Result<Address, Failure> {
    let port = qmp.migration()?.port.and_then(|port| port.parse().ok());
    Ok(match (asked, port) {
        (Address::Tcp { host, port: 0 }, Some(port)) => Address::Tcp {
            host: host.clone(),
            port,
        },
        (asked, _) => asked.clone(),
    })
}

/// Waits until QEMU has made up its mind; there is no need to wait long for one that was not sent everything.
fn wait_loaded(qmp: &mut Qmp, timeout: Duration, sent: bool) -> Result<(), Failure> {
    let end = Instant::now() + if sent { timeout } else { Duration::from_secs(1) };
    loop {
        let migration = qmp.migration()?;
        match migration.status.as_str() {
            "completed" => return Ok(()),
            "failed" => {
                let why = migration.error.unwrap_or_else(|| "it does not say why".into());
                return Err(Failure::Other(format!("QEMU could not load the snapshot: {why}")));
            }
            _ if Instant::now() >= end && !sent => return Ok(()),
            status if Instant::now() >= end => {
                return Err(Failure::Other(format!(
                    "QEMU does not finish loading: it is {status}"
                )));
            }
            _ => qmp.pause()?,
        }
    }
}
