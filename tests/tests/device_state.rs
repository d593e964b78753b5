//! The same `Sender` carries buffers that are no guest pages, to another process.
#![allow(clippy::unwrap_used)]

use multifd_core::{DeviceBuffer, Plain, RamMap, Sender, SenderConfig, SyncScope};
use multifd_tests::guest::sha256;
use multifd_transport_socket::{SocketOptions, SocketTransport};
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};

#[test]
fn labelled_buffers_reach_another_process() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_device-state-receiver"))
        .arg("tcp:127.0.0.1:0")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut address = String::new();
    output.read_line(&mut address).unwrap();
    let transport = SocketTransport::new(address.trim().parse().unwrap(), SocketOptions::default());
    let mut sender =
        Sender::start(RamMap::new(), &Plain, &transport, &SenderConfig::default()).unwrap();
    let mut expected = Vec::new();
    for instance in 0..40u32 {
        let label = format!("0000:00:{:02x}.0/vfio", instance % 3);
        let len = 1 + instance as usize * 30_000;
        let data: Vec<u8> = (0..len).map(|i| (i as u32 * 31 + instance) as u8).collect();
        expected.push(format!("{label} {instance} {len} {}", sha256(&data)));
        sender
            .queue_buffer(DeviceBuffer {
                label,
                instance,
                data: data.into(),
            })
            .unwrap();
    }
    sender.sync(SyncScope::Peer).unwrap();
    let stats = sender.finish().unwrap();
    let mut said = String::new();
    output.read_to_string(&mut said).unwrap();
    assert!(child.wait().unwrap().success());
    expected.sort();
    assert_eq!(said.lines().collect::<Vec<_>>(), expected);
    assert!(
        stats
            .channels
            .iter()
            .all(|channel| channel.buffer_bytes > 0),
        "both channels pull"
    );
}
