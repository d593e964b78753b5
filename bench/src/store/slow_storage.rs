//! A Linux guest from S3, whose answers take 20 ms longer, without and with its working set.

use super::Stage;
use super::reads::Mounted;
use crate::ours::Outcome;
use crate::program::command::run;
use crate::program::machines::text;
use multifd_tests::linux_guest::{LinuxGuest, Said};
use multifd_tests::object_server::{BUCKET, ObjectServer};
use multifd_tests::program;
use multifd_tests::qemu::Qemu;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const LATER: Duration = Duration::from_millis(20);

/// Passes connections on; each request goes on 20 ms late. It runs until the process ends.
fn later(target: &str) -> Outcome<String> {
    let target = target.trim_start_matches("tcp:").to_owned();
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = format!("tcp:{}", listener.local_addr()?);
    let pass = |mut from: TcpStream, mut to: TcpStream, wait: Duration| {
        let mut bytes = vec![0; 1 << 20];
        while let Ok(len @ 1..) = from.read(&mut bytes) {
            std::thread::sleep(wait);
            if to.write_all(&bytes[..len]).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Write);
    };
    std::thread::spawn(move || {
        for near in listener.incoming().flatten() {
            let Ok(far) = TcpStream::connect(&target) else {
                continue;
            };
            let (Ok(near_too), Ok(far_too)) = (near.try_clone(), far.try_clone()) else {
                continue;
            };
            let _ = near.set_nodelay(true);
            let _ = far.set_nodelay(true);
            std::thread::spawn(move || pass(near_too, far, LATER));
            std::thread::spawn(move || pass(far_too, near, Duration::ZERO));
        }
    });
    Ok(address)
}

/// From the start of a mount to the end of the guest's first whole check of its memory.
fn start(
    args: &[String],
    (mount, store): (&Path, &str),
    variables: &[(&str, String)],
    more: &[&str],
) -> Outcome<f64> {
    let begun = Instant::now();
    let mounted = Mounted::start(store, mount, variables, more)?;
    let file = mount.join("vm/vm.mapped");
    let (_, options) = run(&["qemu-options", "--json", text(&file)?])?;
    let words = options["arguments"].as_array().cloned().unwrap_or_default();
    let words = words.iter().filter_map(|word| word.as_str());
    let all: Vec<&str> = args.iter().map(String::as_str).chain(words).collect();
    let qemu = Qemu::bare(&all);
    run(&[
        "restore",
        "--json",
        "--instant",
        "--qmp",
        text(&qemu.monitor)?,
        text(&file)?,
    ])?;
    loop {
        let said = Said::read_without_disk(&qemu.serial());
        // The first line may be the end of a check that began before.
        if said.memory.len() >= 2 {
            let seconds = begun.elapsed().as_secs_f64();
            drop((qemu, mounted));
            return Ok(seconds);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub(super) fn measure(stage: &mut Stage<'_>) -> Outcome<()> {
    let case = "S3 with 20 ms, Linux guest's check";
    let Some(guest) = LinuxGuest::find().filter(|_| stage.wants(case)) else {
        return Ok(());
    };
    let args = guest.sized(&stage.memory.join("disk"), 512, "memory=100 dirty=0:0");
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let source = Qemu::bare(&words);
    while Said::read(&source.serial()).memory.len() < 3 {
        std::thread::sleep(Duration::from_millis(20));
    }
    let file = stage.disk.join("vm.mapped");
    run(&[
        "snapshot",
        "--json",
        "--qmp",
        text(&source.monitor)?,
        "--out",
        text(&file)?,
    ])?;
    drop(source);
    let server = ObjectServer::start();
    let address = later(&server.address)?;
    let store = format!("s3://{BUCKET}");
    let status = Command::new(program::path())
        .args([
            "store",
            "import",
            "-q",
            text(&file)?,
            &format!("store:{store}#vm"),
        ])
        .envs(server.variables(None))
        .status()?;
    if !status.success() {
        return Err("the snapshot could not be stored".into());
    }
    let near = server.variables(None);
    let far = server.variables(Some(&address));
    let mount = stage.disk.join("mnt");
    let place = (mount.as_path(), store.as_str());
    // Recorded once, at the first start.
    let first = start(&args, place, &far, &[])?;
    let (mut without, mut with, mut local) = (vec![], vec![], vec![]);
    for _ in 0..stage.runs {
        without.push(start(&args, place, &far, &["--no-replay"])?);
        with.push(start(&args, place, &far, &[])?);
        local.push(start(&args, place, &near, &["--no-replay"])?);
    }
    stage.note((case, "without working set", "s"), without, None)?;
    stage.note((case, "with working set", "s"), with, None)?;
    stage.note((case, "first start, recorded", "s"), vec![first], None)?;
    stage.note((case, "without the 20 ms", "s"), local, None)?;
    let _ = std::fs::remove_file(file.with_extension("mapped.crc"));
    Ok(std::fs::remove_file(&file)?)
}
