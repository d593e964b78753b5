//! `multifd restore`: a file into a QEMU that waits for it.

use crate::args::Restore;
use crate::encoding::{Encoding, Level};
use crate::failure::Failure;
use crate::migration_setup::Changed;
use crate::private_socket::MeetingPlace;
use crate::qmp::Qmp;
use crate::send::{self, Way};
use crate::{signals, snapshot_file};
use multifd_core::WriteFlags;
use multifd_transport_socket::{Address, SocketTransport};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

pub(crate) fn run(args: &Restore) -> Result<(), Failure> {
    let cancel = signals::cancel_on_signal()?;
    let control = &args.control;
    let encoding = Encoding {
        compression: control.compression,
        level: Level::Fixed(1),
        compress_threads: None,
        checksum: false,
    };
    let encoder = encoding.encoder(Some(control.channels))?;
    let mut snapshot = snapshot_file::read(&args.file, args.direct_io)?;
    let timeout = Duration::from_secs(args.deadlines.timeout);
    let mut qmp = Qmp::connect(&control.qmp, timeout)?;
    let (_, status) = qmp.guest()?;
    if status != "inmigrate" {
        return Err(Failure::Other(format!(
            "QEMU does not wait for a migration (its guest is {status}): start it with -incoming defer"
        )));
    }
    snapshot.ram = std::mem::take(&mut snapshot.ram).freeze()?;
    // A QEMU takes no UUID but its own.
    snapshot.uuid = own_uuid(&mut qmp)?;
    if control.stop {
        qmp.execute("stop", &json!({}))?;
    }
    let mut changed = Changed::default();
    changed.set_up(&mut qmp, control.channels, control.compression)?;
    let place = MeetingPlace::new(control.via.as_ref())?;
    qmp.execute("migrate-incoming", &json!({ "uri": place.address.to_string() }))?;
    let address = listening_on(&mut qmp, &place.address)?;
    let transport = SocketTransport::new(address, args.deadlines.socket());
    let way = Way {
        encoder: &encoder,
        checksums: encoding.checksums(),
        transport: &transport,
        channels: control.channels,
        flags: WriteFlags::default(),
        dialect: args.dialect,
        finish: timeout,
    };
    let begun = Instant::now();
    let sent = send::give(&snapshot, &way, &cancel, args.show);
    let loaded = wait_loaded(&mut qmp, timeout, sent.is_ok());
    // QEMU's own words say more than a connection that broke off.
    loaded?;
    let sent = sent?;
    changed.put_back(&mut qmp)?;
    if control.resume && !qmp.guest()?.0 {
        qmp.execute("cont", &json!({}))?;
    }
    send::finish(args.show, &snapshot, &encoder, &sent, begun, None);
    Ok(())
}

fn own_uuid(qmp: &mut Qmp) -> Result<[u8; 16], Failure> {
    let info = qmp.execute("query-uuid", &json!({}))?;
    let text = info.get("UUID").and_then(Value::as_str).unwrap_or_default();
    let digits: String = text.chars().filter(|c| *c != '-').collect();
    Ok(u128::from_str_radix(&digits, 16).unwrap_or(0).to_be_bytes())
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
