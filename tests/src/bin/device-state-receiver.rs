//! The other process of `tests/device_state.rs`: receives labelled buffers over two channels, and
//! prints what came.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use multifd_core::{
    BoxError, ChannelSource, DeviceBuffer, DeviceSink, RamMap, Receiver, ReceiverConfig,
};
use multifd_tests::guest::sha256;
use multifd_transport_socket::{SocketListener, SocketOptions};
use std::sync::{Arc, Mutex};

#[derive(Default)]
struct Taken(Mutex<Vec<String>>);

impl DeviceSink for Taken {
    fn take(&self, buffers: DeviceBuffer) -> Result<(), BoxError> {
        let DeviceBuffer {
            label,
            instance,
            data,
        } = buffers;
        let line = format!("{label} {instance} {} {}", data.len(), sha256(&data));
        self.0.lock().map_err(|e| e.to_string())?.push(line);
        Ok(())
    }
}

fn main() {
    let address = std::env::args()
        .nth(1)
        .expect("an address")
        .parse()
        .expect("an address");
    let mut listener = SocketListener::bind(&address, SocketOptions::default()).unwrap();
    println!("{}", listener.address().unwrap());
    let taken = Arc::new(Taken::default());
    let config =
        ReceiverConfig::default().device_state(Some(Arc::clone(&taken) as Arc<dyn DeviceSink>));
    let mut receiver = Receiver::new(RamMap::new(), config).unwrap();
    while receiver.channels() < 2 {
        let channel = listener.next_channel(true).unwrap().expect("a channel");
        receiver.attach(channel).unwrap();
    }
    receiver.wait_identified().unwrap();
    receiver.wait_sync().unwrap();
    receiver.finish().unwrap();
    let mut lines = taken.0.lock().unwrap().clone();
    lines.sort();
    for line in lines {
        println!("{line}");
    }
}
