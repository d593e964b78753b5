//! `multifd restore`: a file into a QEMU that waits for it.

use crate::args::Restore;
use crate::encoding::Encoding;
use crate::failure::Failure;
use crate::method::Choice;
use crate::private_socket::MeetingPlace;
use crate::send::{self, Way};
use crate::{signals, snapshot};
use multifd_core::WriteFlags;
use multifd_qemu::file::SnapshotFile;
use multifd_qemu::qmp::{RestoreOptions, restore};
use multifd_transport_socket::{Address, SocketTransport};
use std::time::{Duration, Instant};

pub(crate) fn run(args: &Restore) -> Result<(), Failure> {
    args.threads.apply()?;
    let cancel = signals::cancel_on_signal()?;
    let control = &args.control;
    let encoding = Encoding {
        compression: Choice::One(control.compression),
        level: None,
        compress_threads: None,
        checksum: false,
    };
    let encoder = encoding.encoder(Some(control.channels))?;
    let timeout = Duration::from_secs(args.deadlines.timeout);
    let mut qmp = snapshot::monitor(control, timeout)?;
    let place = MeetingPlace::new(control.via.as_ref())?;
    let options = RestoreOptions::default()
        .channels(control.channels)
        .compression(control.compression)
        .resume(control.resume)
        .stop(control.stop)
        .timeout(timeout)
        .hooks(snapshot::hooks());
    let mut sent_as = None;
    let mut begun = Instant::now();
    let image = &args.image;
    let load = || {
        let mut snapshot =
            SnapshotFile::open(&image.file, image.offset)?.load(&args.direct_io.load_options())?;
        // Nobody changes it any more: a codec may read it in place.
        snapshot.ram = std::mem::take(&mut snapshot.ram).freeze()?;
        Ok(snapshot)
    };
    let restored = restore(
        &mut qmp,
        &place.address.to_string(),
        load,
        |snapshot, port| {
            begun = Instant::now();
            sent_as = Some(snapshot.clone());
            let transport =
                SocketTransport::new(listening_on(&place.address, port), args.deadlines.socket());
            let way = Way {
                encoder: &encoder,
                checksums: encoding.checksums(),
                transport: &transport,
                channels: control.channels,
                flags: WriteFlags::default(),
                dialect: args.dialect,
                finish: timeout,
            };
            send::give(snapshot, &way, &cancel, args.show)
        },
        &options,
    )?;
    let Some(snapshot) = sent_as else {
        return Err(Failure::Other("nothing was sent".into()));
    };
    let more = (None, Some(restored.state));
    send::finish(args.show, &snapshot, &encoder, &restored.sent, begun, more)
}

/// Where QEMU listens, with the port it chose.
fn listening_on(asked: &Address, port: Option<u16>) -> Address {
    match (asked, port) {
        (Address::Tcp { host, port: 0 }, Some(port)) => Address::Tcp {
            host: host.clone(),
            port,
        },
        (asked, _) => asked.clone(),
    }
}
