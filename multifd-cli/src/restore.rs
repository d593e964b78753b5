//! `multifd restore`: a file into a QEMU that waits for it.

use crate::encoding::Encoding;
use crate::failure::Failure;
use crate::image_file::Opened;
use crate::method::Choice;
use crate::monitor_args::{Restore, Verification};
use crate::options::{Direct, Via};
use crate::private_socket::MeetingPlace;
use crate::report::{self, Mapped, Transfer};
use crate::send::{self, Way};
use crate::{monitor, signals};
use multifd_core::packet::Compression;
use multifd_core::{CancelHandle, WriteFlags};
use multifd_qemu::file::SnapshotFile;
use multifd_qemu::qmp::{
    MappedRestore, Qmp, QmpError, RestoreOptions, Restored, cannot_use_files, restore,
    restore_from_file, restore_instantly,
};
use multifd_transport_socket::{Address, SocketOptions, SocketTransport};
use std::time::{Duration, Instant};

pub(crate) fn run(args: &Restore) -> Result<(), Failure> {
    args.threads.apply()?;
    let cancel = signals::cancel_on_signal()?;
    if args.verify == Some(Verification::Background) && !args.instant {
        return Err(Failure::Other(
            "--verify=background is for --instant: without it all memory is read at once, and --verify checks it before"
                .into(),
        ));
    }
    let timeout = Duration::from_secs(args.deadlines.timeout);
    let mut qmp = monitor::connect(&args.control.qmp, timeout)?;
    if args.instant {
        let file = args.image.lasting()?;
        if args.verify == Some(Verification::First) {
            refuse_if_damaged(&file)?;
        }
        return instant(args, &mut qmp, &file, &cancel);
    }
    let file = args.image.open()?;
    if args.verify == Some(Verification::First) {
        refuse_if_damaged(&file)?;
    }
    let why_not = cannot_be_read_by_qemu(args, &mut qmp)?;
    let by_file = match (&args.control.via, why_not) {
        (Via::File, Some(why)) => return Err(Failure::Other(format!("--via file: {why}"))),
        (Via::Socket(_), _) | (Via::Auto, Some(_)) => false,
        (Via::File | Via::Auto, None) => true,
    };
    if by_file {
        match from_file(args, &mut qmp, &file) {
            Err(Failure::Qmp(error @ QmpError::NotPassed(_))) if args.control.via == Via::Auto => {
                if !args.show.quiet {
                    report::note(&format!("{error}; memory goes over sockets"));
                }
            }
            other => return other,
        }
    }
    if args.direct_io == Direct::On {
        Err(Failure::Other(
            "--direct-io on goes with --via file only: over sockets memory is read through the page cache".into(),
        ))
    } else {
        over_sockets(args, &mut qmp, file, &cancel)
    }
}

/// Why QEMU cannot read the file by itself, if it cannot.
fn cannot_be_read_by_qemu(args: &Restore, qmp: &mut Qmp) -> Result<Option<&'static str>, Failure> {
    Ok(if args.control.compression != Compression::None {
        Some("pages in a file are not compressed: --compression is for sockets")
    } else if args.dialect.sync.is_some() || args.dialect.zero_pages.is_some() {
        Some("--sync and --zero-pages are for sockets")
    } else {
        cannot_use_files(qmp)?
    })
}

const NO_COMPANION: &str = "there is no companion with checksums to verify it by";

/// Refuses a file that differs from its checksums, or has none.
pub(crate) fn refuse_if_damaged(file: &SnapshotFile) -> Result<(), Failure> {
    let found = file.verify();
    let path = file.path().display();
    if !found.digest {
        return Err(Failure::Other(format!("{path}: {NO_COMPANION}")));
    }
    if found.problems.is_empty() {
        return Ok(());
    }
    Err(Failure::Other(format!(
        "{path} is damaged, and was not given to QEMU: {}",
        found.problems.join("; ")
    )))
}

fn options(args: &Restore) -> RestoreOptions {
    let control = &args.control;
    RestoreOptions::default()
        .channels(control.channels())
        .compression(control.compression)
        .resume(control.resume)
        .stop(control.stop)
        .timeout(Duration::from_secs(args.deadlines.timeout))
        .hooks(monitor::hooks())
}

fn from_file(args: &Restore, qmp: &mut Qmp, file: &SnapshotFile) -> Result<(), Failure> {
    let direct = args.direct_io.of(file.file());
    let begun = Instant::now();
    let options = options(args)
        .channels(args.control.readers())
        .direct(direct);
    let restored = restore_from_file(qmp, file, &options)?;
    let seconds = begun.elapsed().as_secs_f64();
    let result = Transfer {
        state: Some(restored.state.clone()),
        ..of(file, seconds)
    };
    let text = format!(
        "QEMU read the file in {seconds:.2} s\nthe guest is {}",
        restored.state
    );
    report::print(args.show.json, &result, &text)
}

/// What is known of a transfer that QEMU did by itself.
fn of(file: &SnapshotFile, seconds: f64) -> Transfer {
    let vm = file.mapped();
    Transfer {
        ok: true,
        machine: vm.configuration.machine.clone(),
        uuid: file.uuid().to_string(),
        compression: Compression::None.name().into(),
        sync: "none",
        seconds,
        blocks: report::blocks(vm.block_infos()),
        by_qemu: true,
        ..Transfer::default()
    }
}

fn instant(
    args: &Restore,
    qmp: &mut Qmp,
    file: &SnapshotFile,
    cancel: &CancelHandle,
) -> Result<(), Failure> {
    let begun = Instant::now();
    let place = MeetingPlace::new(args.control.via.address())?;
    let restored = start(
        qmp,
        file,
        &place,
        args.deadlines.socket(),
        cancel,
        &options(args),
    )?;
    let seconds = begun.elapsed().as_secs_f64();
    let MappedRestore {
        mapped_blocks,
        mapped_bytes,
        reloaded_pages,
        sent_bytes,
        ..
    } = restored.sent;
    let result = Transfer {
        state: Some(restored.state.clone()),
        main_bytes: sent_bytes,
        mapped: Some(Mapped {
            blocks: mapped_blocks,
            bytes: mapped_bytes,
            reloaded_pages,
            sent_bytes,
        }),
        ..of(file, seconds)
    };
    let text = format!(
        "{} of guest memory mapped, {} loaded, in {:.0} ms\nthe guest is {}",
        report::bytes(mapped_bytes),
        report::bytes(sent_bytes),
        seconds * 1000.0,
        restored.state
    );
    report::print(args.show.json, &result, &text)?;
    if args.verify == Some(Verification::Background) {
        verify_behind(qmp, file)?;
    }
    Ok(())
}

/// Has a QEMU that maps a snapshot go on from it.
pub(crate) fn start(
    qmp: &mut Qmp,
    file: &SnapshotFile,
    place: &MeetingPlace,
    socket: SocketOptions,
    cancel: &CancelHandle,
    options: &RestoreOptions,
) -> Result<Restored<MappedRestore>, Failure> {
    let transport = SocketTransport::new(place.address.clone(), socket);
    let uri = place.address.to_string();
    Ok(restore_instantly(
        qmp,
        file,
        (&transport, &uri),
        cancel,
        options,
    )?)
}

/// Checks a snapshot that a guest runs from already, and stops the guest if it is damaged.
pub(crate) fn verify_behind(qmp: &mut Qmp, file: &SnapshotFile) -> Result<(), Failure> {
    let found = file.verify();
    if found.digest && found.problems.is_empty() {
        return Ok(());
    }
    qmp.execute("stop", &serde_json::json!({}))?;
    let why = if found.digest {
        found.problems.join("; ")
    } else {
        NO_COMPANION.into()
    };
    Err(Failure::Other(format!(
        "{} is damaged, and the guest that runs from it has been stopped: {why}",
        file.path().display()
    )))
}

fn over_sockets(
    args: &Restore,
    qmp: &mut Qmp,
    file: Opened,
    cancel: &CancelHandle,
) -> Result<(), Failure> {
    let control = &args.control;
    let encoding = Encoding {
        compression: Choice::One(control.compression),
        level: None,
        compress_threads: None,
        checksum: false,
    };
    let encoder = encoding.encoder(Some(control.channels()))?;
    let place = MeetingPlace::new(control.via.address())?;
    let mut sent_as = None;
    let mut mount = None;
    let mut begun = Instant::now();
    let restored = restore(
        qmp,
        &place.address.to_string(),
        || {
            let (snapshot, mounted) = file.map_by(|file| send::mapped(file, args.dialect))?;
            mount = mounted;
            Ok(snapshot)
        },
        |snapshot, port| {
            begun = Instant::now();
            sent_as = Some(snapshot.clone());
            let transport =
                SocketTransport::new(listening_on(&place.address, port), args.deadlines.socket());
            let way = Way {
                encoder: &encoder,
                checksums: encoding.checksums(),
                transport: &transport,
                channels: control.channels(),
                flags: WriteFlags::default(),
                dialect: args.dialect,
                finish: Duration::from_secs(args.deadlines.timeout),
            };
            send::give(snapshot, &way, cancel, args.show)
        },
        &options(args),
    )?;
    let Some(snapshot) = sent_as else {
        return Err(Failure::Other("nothing was sent".into()));
    };
    let more = (None, Some(restored.state));
    let finished = send::finish(args.show, &snapshot, &encoder, &restored.sent, begun, more);
    // Its memory is read through the mount to the end.
    drop((snapshot, mount));
    finished
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
