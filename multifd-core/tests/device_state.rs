//! Buffers that are not guest pages: many producers, order, flow control, handlers that fail.
#![allow(clippy::unwrap_used, clippy::panic)]

use bytes::Bytes;
use multifd_core::{
    BoxError, DeviceBuffer, DeviceHandlers, Error, Plain, RamMap, Receiver, ReceiverConfig, Sender,
    SenderConfig, SyncScope,
};
use multifd_testing::{Pipes, bytes, guest, write};
use std::collections::HashMap;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

fn chunk(label: &str, instance: u32, number: u32, len: usize) -> DeviceBuffer {
    let mut data = number.to_be_bytes().to_vec();
    data.resize(len.max(4), number as u8);
    DeviceBuffer {
        label: label.into(),
        instance,
        data: Bytes::from(data),
    }
}

fn receiver(map: &RamMap, pipes: &Pipes, handlers: DeviceHandlers) -> Receiver {
    let config = ReceiverConfig::default().device_state(Some(Arc::new(handlers)));
    let mut receiver = Receiver::new(map.clone(), config).unwrap();
    for pipe in &pipes.0 {
        receiver.attach(Box::new(pipe.clone())).unwrap();
    }
    receiver
}

fn config(channels: u8) -> SenderConfig {
    SenderConfig::default().channels(channels)
}

/// Chunks as they came: label, instance, number, bytes.
type Log = Arc<Mutex<Vec<(String, u32, u32, usize)>>>;

fn keep(log: &Log) -> impl FnMut(DeviceBuffer) -> Result<(), BoxError> + Send + 'static {
    let log = Arc::clone(log);
    move |DeviceBuffer {
              label,
              instance,
              data,
          }| {
        let number = u32::from_be_bytes(data[..4].try_into().unwrap());
        if data[4..].iter().any(|&byte| byte != number as u8) {
            return Err("it is damaged".into());
        }
        log.lock()
            .unwrap()
            .push((label, instance, number, data.len()));
        Ok(())
    }
}

#[test]
fn several_threads_queue_beside_ram_and_order_is_kept_where_asked() {
    let (source, target) = (guest("pc.ram", 3000), guest("pc.ram", 3000));
    (0..3000).for_each(|page| write(&source, page, &format!("page {page}")));
    let pipes = Pipes::new(4);
    let log = Log::default();
    let mut handlers = DeviceHandlers::new();
    for label in ["gpu", "nic", "disk"] {
        handlers.register(label, keep(&log));
    }
    let receiver = receiver(&target, &pipes, handlers);
    let mut sender = Sender::start(source.clone(), &Plain, &pipes, &config(4)).unwrap();
    let rounds = 5;
    std::thread::scope(|scope| {
        for (label, instance) in [("gpu", 0), ("gpu", 1), ("nic", 0), ("disk", 7)] {
            let queue = sender.buffers();
            scope.spawn(move || {
                for number in 0..300 {
                    let len = 4 + (number as usize * 977) % 50_000;
                    let buffers = chunk(label, instance, number, len);
                    // Two of the three labels want their chunks in order.
                    match label {
                        "disk" => queue.queue(buffers),
                        _ => queue.queue_in_order(buffers),
                    }
                    .unwrap();
                }
            });
        }
        for _ in 0..rounds {
            sender.queue_range(0, 0, 3000 * 4096).unwrap();
            // Ends although producers never stop: what they queue meanwhile is the next round's.
            sender.sync(SyncScope::Peer).unwrap();
            receiver.wait_sync().unwrap();
        }
        // The producers' last chunks need takers, too: the scope waits for them here.
    });
    sender.sync(SyncScope::Peer).unwrap();
    receiver.wait_sync().unwrap();
    let late = sender.buffers();
    let sent = sender.finish().unwrap().total();
    receiver.finish().unwrap();
    assert!(matches!(
        late.queue(chunk("gpu", 0, 0, 10)),
        Err(Error::Finished)
    ));
    assert!(bytes(&source) == bytes(&target));
    let log = log.lock().unwrap();
    assert_eq!(log.len(), 1200);
    assert_eq!(
        sent.buffer_bytes,
        log.iter().map(|(.., len)| *len as u64).sum::<u64>()
    );
    let mut numbers: HashMap<(&str, u32), Vec<u32>> = HashMap::new();
    for (label, instance, number, _) in log.iter() {
        numbers.entry((label, *instance)).or_default().push(*number);
    }
    let in_order: Vec<u32> = (0..300).collect();
    for ((label, instance), mut found) in numbers {
        if label == "disk" {
            found.sort_unstable();
        }
        assert_eq!(found, in_order, "{label} {instance}");
    }
}

#[test]
fn a_slow_taker_holds_the_producer_back() {
    let pipes = Pipes::new(2);
    let (open, gate) = channel::<()>();
    let mut handlers = DeviceHandlers::new();
    handlers.register("gpu", move |_| {
        // Ends with the test: the other end of the gate is dropped.
        let _ = gate.recv();
        Ok(())
    });
    let receiver = receiver(&RamMap::new(), &pipes, handlers);
    let mut sender = Sender::start(RamMap::new(), &Plain, &pipes, &config(2)).unwrap();
    let queue = sender.buffers();
    let (progress, queued) = channel();
    let producer = std::thread::spawn(move || {
        for number in 0..200 {
            queue.queue(chunk("gpu", 0, number, 1 << 20)).unwrap();
            progress.send(number).unwrap();
        }
    });
    let mut count = 0;
    while queued.recv_timeout(Duration::from_millis(300)) != Err(RecvTimeoutError::Timeout) {
        count += 1;
    }
    // Two in hand at either end of each channel, a few in the queue, a megabyte in each pipe.
    assert!(
        (2..30).contains(&count),
        "{count} of 200 chunks were taken in with nobody to take them out"
    );
    drop(open);
    producer.join().unwrap();
    sender.sync(SyncScope::Peer).unwrap();
    receiver.wait_sync().unwrap();
    sender.finish().unwrap();
    assert_eq!(receiver.finish().unwrap().total().buffer_bytes, 200 << 20);
}

#[test]
fn a_handler_that_fails_or_panics_is_named() {
    for (label, expected) in [
        ("fails", "\"fails\" (instance 3): there is no such register"),
        (
            "panics",
            "\"panics\" (instance 3): its handler panicked: 7 is not 8",
        ),
        (
            "nobody",
            "\"nobody\" (instance 3): nobody here takes this label",
        ),
    ] {
        let pipes = Pipes::new(2);
        let mut handlers = DeviceHandlers::new();
        handlers.register("fails", |_| Err("there is no such register".into()));
        handlers.register("panics", |_| panic!("{} is not 8", 7));
        let receiver = receiver(&RamMap::new(), &pipes, handlers);
        let sender = Sender::start(RamMap::new(), &Plain, &pipes, &config(2)).unwrap();
        sender.queue_buffer(chunk(label, 3, 1, 100)).unwrap();
        let error = receiver.wait_sync().unwrap_err();
        assert!(matches!(error, Error::DeviceState { .. }), "{error:?}");
        assert!(error.to_string().contains(expected), "{error}");
        assert!(receiver.finish().is_err());
    }
}

#[test]
fn a_chunk_over_the_limit_is_refused_before_it_is_queued() {
    let pipes = Pipes::new(1);
    let config = config(1).max_device_state(1000);
    let sender = Sender::start(RamMap::new(), &Plain, &pipes, &config).unwrap();
    for len in [0, 1001] {
        let buffers = DeviceBuffer {
            data: Bytes::from(vec![0; len]),
            ..chunk("gpu", 0, 0, 4)
        };
        let error = sender
            .buffers()
            .queue_in_order(buffers)
            .unwrap_err()
            .to_string();
        assert!(error.contains("1 to 1000"), "{error}");
    }
    sender.queue_buffer(chunk("gpu", 0, 0, 1000)).unwrap();
}
