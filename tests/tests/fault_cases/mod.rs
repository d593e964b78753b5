//! What sources do wrong: a recorded migration, changed in one place.
#![allow(unreachable_pub)]

use multifd_packet::{Geometry, RamPacket};
use multifd_tests::golden::Golden;

/// Tells a source what to do.
#[derive(Clone)]
pub struct Source {
    pub main: Vec<u8>,
    pub channels: Vec<Vec<u8>>,
    /// Connections are left open, and silent, when all is said.
    pub hold: bool,
}

/// What is done to a recorded migration, and what the destination must say of it.
pub struct Case {
    pub name: String,
    pub source: Source,
    pub pinned: Option<u8>,
    pub expected: &'static str,
}

/// Where the packets of a channel begin, with their pages and payload, after the init packet.
fn packets(channel: &[u8]) -> Vec<(usize, usize, usize)> {
    let geometry = Geometry::new(4096).unwrap();
    let (mut at, mut found) = (64, Vec::new());
    while at < channel.len() {
        let packet = RamPacket::parse(&channel[at..], geometry).unwrap();
        let payload = packet.fields().payload_len as usize;
        found.push((at, packet.normal().len(), payload));
        at += geometry.packet_len() + payload;
    }
    found
}

/// Bytes of the golden main channel before its device sections.
fn tail_start(main: &[u8]) -> usize {
    // The end section: 0x03, its id, flush, end, footer; then the first device section.
    let end = [0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0x7e];
    let at = main
        .windows(end.len())
        .rposition(|window| window == end)
        .unwrap();
    at + end.len() + 4
}

/// Every case.
#[allow(clippy::too_many_lines)] // A table.
pub fn cases() -> Vec<Case> {
    let golden = Golden::load("none-2ch");
    let good = Source {
        main: golden.main().to_vec(),
        channels: golden.channels(),
        hold: false,
    };
    let mut cases = Vec::new();
    let mut add = |name: String, expected, pinned, change: &dyn Fn(&mut Source)| {
        let mut source = good.clone();
        change(&mut source);
        cases.push(Case {
            name,
            source,
            pinned,
            expected,
        });
    };
    let tail = tail_start(&good.main);
    let whole = good.main.len();
    for (at, expected) in [
        (4, "within the version"),
        (8, "within the first element"),
        (11, "within the machine name's length"),
        (20, "within the machine name"),
        (30, "within a section's id"),
        (60, "within a RAM block's"),
        (tail - 40, "migration is not complete"),
        (tail - 20, "migration is not complete"),
        (tail - 1, "within a section footer's id"),
        (tail, "within the next section"),
        (tail + 1, "within the device sections"),
        (tail.midpoint(whole), "within the device sections"),
        (whole - 1, "within the device sections"),
    ] {
        add(format!("main cut at {at}"), expected, None, &|s| {
            s.main.truncate(at);
        });
    }
    add(
        "main with more at its end".into(),
        "within the device sections",
        None,
        &|s| s.main.push(0),
    );

    let list = packets(&good.channels[0]);
    let &(data, _, payload) = list.iter().find(|(_, normal, _)| *normal > 3).unwrap();
    let &(last_sync, ..) = list.last().unwrap();
    let &(second, ..) = list.get(1).unwrap();
    for (at, expected) in [
        (0, "receiving the init packet|there are only 1 channels"),
        (30, "after 30 of 64 bytes"),
        (64, "ended before the round did"),
        (64 + 5, "after 5 of 12 bytes"),
        (second + 700, "closed the connection"),
        (data + 1344 + 100, "closed the connection"),
        (data + 1344 + payload, "ended within a round"),
        (last_sync, "ended before the round did"),
    ] {
        add(format!("channel cut at {at}"), expected, None, &|s| {
            s.channels[0].truncate(at);
        });
    }

    add(
        "another main magic".into(),
        "neither a migration's main connection",
        None,
        &|s| s.main[0] = b'X',
    );
    add(
        "another main version".into(),
        "the version is 0x2, expected 0x3",
        None,
        &|s| s.main[7] = 2,
    );
    add(
        "another channel magic".into(),
        "a channel is missing|there are only 1 channels",
        None,
        &|s| s.channels[1][1] = 0,
    );
    add(
        "another channel version".into(),
        "version is 0x9, expected 0x1",
        None,
        &|s| s.channels[1][7] = 9,
    );
    add("another packet magic".into(), "magic is", None, &|s| {
        s.channels[0][data] = 0;
    });
    add("another UUID".into(), "the source's UUID is", None, &|s| {
        s.channels[1][8] ^= 1;
    });
    add(
        "an id twice".into(),
        "connected a second time",
        None,
        &|s| {
            s.channels[1][24] = s.channels[0][24];
        },
    );
    add(
        "an id out of range".into(),
        "a channel with id 7 connected",
        None,
        &|s| s.channels[1][24] = 7,
    );
    add(
        "an offset outside".into(),
        "lie outside RAM block \"pc.ram\"",
        None,
        &|s| s.channels[0][data + 321] = 1,
    );
    add("an offset not aligned".into(), "offset 0x", None, &|s| {
        s.channels[0][data + 327] = 1;
    });
    add(
        "an unknown block".into(),
        "there is no RAM block \"xc.ram\"",
        None,
        &|s| s.channels[0][data + 64] = b'x',
    );
    add(
        "a block without end".into(),
        "ramblock is not",
        None,
        &|s| {
            s.channels[0][data + 64..data + 320].fill(b'x');
        },
    );
    add("a huge pages_alloc".into(), "pages_alloc is", None, &|s| {
        s.channels[0][data + 12] = 0xff;
    });
    add(
        "a huge normal_pages".into(),
        "normal_pages is",
        None,
        &|s| {
            s.channels[0][data + 16] = 0xff;
        },
    );
    add("a huge payload".into(), "next_packet_size is", None, &|s| {
        s.channels[0][data + 20] = 0xff;
    });
    add("a huge zero_pages".into(), "zero_pages is", None, &|s| {
        s.channels[0][data + 32] = 0xff;
    });
    add(
        "an unknown method".into(),
        "unknown compression method",
        None,
        &|s| s.channels[0][data + 11] = 6,
    );
    add(
        "a method nobody has".into(),
        "compression zlib, expected none",
        None,
        &|s| s.channels[0][data + 11] = 2,
    );
    add("device state".into(), "nobody here takes it", None, &|s| {
        s.channels[0].splice(data..data, {
            let mut packet = vec![0x11, 0x22, 0x33, 0x44, 0, 0, 0, 1, 0, 0, 0, 0x40];
            packet.extend(b"vfio");
            packet.resize(276, 0);
            packet[275] = 9;
            packet.extend([0; 9]);
            packet
        });
    });

    add(
        "a main channel that stalls".into(),
        "for 400ms",
        None,
        &|s| {
            s.hold = true;
            s.main.truncate(tail + 100);
        },
    );
    add(
        "a channel that stalls between packets".into(),
        "nothing moved for",
        None,
        &|s| {
            s.hold = true;
            s.channels[0].truncate(last_sync);
        },
    );
    add(
        "a channel that stalls within a packet".into(),
        "nothing moved for",
        None,
        &|s| {
            s.hold = true;
            s.channels[1].truncate(500);
        },
    );
    add(
        "more channels than announced".into(),
        "2 multifd channels connected, expected 1|there are only 1 channels",
        Some(1),
        &|_| (),
    );
    add(
        "fewer channels than announced".into(),
        "2 multifd channels connected, expected 3",
        Some(3),
        &|_| (),
    );
    add(
        "no channels".into(),
        "switch the multifd capability on",
        None,
        &|s| s.channels.clear(),
    );
    add(
        "pages after the last round".into(),
        "ended within a round",
        None,
        &|s| {
            let (from, to) = (data, data + 1344 + payload);
            let mut again = s.channels[0][from..to].to_vec();
            // The next number: the recording has 43 packets.
            again[24..32].copy_from_slice(&43u64.to_be_bytes());
            s.channels[0].extend(again);
        },
    );

    add(
        "a channel nobody saw in time".into(),
        "a channel is missing; say how many there are",
        None,
        &|s| {
            // The other says that it is the only one; its packets' numbers say otherwise.
            s.channels.remove(0);
            s.channels[0][24] = 0;
        },
    );
    let flush = good
        .main
        .windows(8)
        .position(|window| window == [0, 0, 0, 0, 0, 0, 2, 0])
        .unwrap();
    for (word, expected) in [
        (0x40u64, "switch the xbzrle capability off"),
        (0x80, "migrate over tcp or unix, not rdma"),
        (0x100, "switch the compress capability off"),
        (0x400, "a word of the RAM section is 0x400"),
    ] {
        add(format!("a record {word:#x}"), expected, None, &|s| {
            s.main[flush..flush + 8].copy_from_slice(&word.to_be_bytes());
        });
    }
    for (name, bytes, expected) in [
        (
            "1",
            [8, 0, 1, 0, 0].as_slice(),
            "switch the return-path capability off",
        ),
        (
            "1 and 2",
            &[8, 0, 1, 0, 0, 8, 0, 2, 0, 4, 0, 0, 0, 1],
            "switch the return-path capability off",
        ),
        (
            "3",
            &[8, 0, 3, 0, 16],
            "switch the postcopy-ram capability off",
        ),
        (
            "1, 2 and 3",
            &[8, 0, 1, 0, 0, 8, 0, 2, 0, 4, 0, 0, 0, 1, 8, 0, 3, 0, 16],
            "switch the postcopy-ram capability off",
        ),
        (
            "3 without a body",
            &[8, 0, 1, 0, 0, 8, 0, 3, 0, 0],
            "switch the dirty-bitmaps capability off",
        ),
        (
            "7",
            &[8, 0, 7, 0, 0],
            "switch the postcopy-ram capability off",
        ),
        ("8", &[8, 0, 8, 0, 0], "switch the x-colo capability off"),
        ("99", &[8, 0, 99, 0, 0], "an unknown command (99)"),
    ] {
        add(format!("command {name}"), expected, None, &|s| {
            // After the setup section: its end and its footer.
            let after = flush + 8 + 8 + 5;
            s.main.splice(after..after, bytes.iter().copied());
        });
    }
    // The setup list: "pc.ram" and its length stand right after the total.
    let name = good
        .main
        .windows(6)
        .position(|window| window == b"pc.ram")
        .unwrap();
    let (total, length) = (name - 9, name + 6);
    add("too much RAM".into(), "the guest's RAM is", None, &|s| {
        s.main[total] = 0x7f;
    });
    add(
        "a block longer than the total".into(),
        "a RAM block's length is",
        None,
        &|s| s.main[length + 4] = 0xff,
    );
    add(
        "a block of no length".into(),
        "a RAM block's length is 0x0",
        None,
        &|s| s.main[length..length + 8].fill(0),
    );
    add(
        "a block not of pages".into(),
        "a RAM block's length is",
        None,
        &|s| s.main[length + 7] = 1,
    );
    add(
        "a block twice".into(),
        "is in the map already",
        None,
        &|s| {
            let bios = s
                .main
                .windows(7)
                .position(|window| window == b"pc.bios")
                .unwrap();
            s.main[bios..bios + 6].copy_from_slice(b"pc.ram");
            s.main[bios + 6..].rotate_left(1);
            s.main[bios - 1] = 6;
        },
    );
    add(
        "a block without a name".into(),
        "a RAM block's name is \"\"",
        None,
        &|s| {
            s.main[name - 1] = 0;
            s.main.drain(name..length);
        },
    );
    add(
        "another iterable section".into(),
        "the iterable section \"rbm\"",
        None,
        &|s| {
            let at = s
                .main
                .windows(4)
                .position(|window| window == b"\x03ram")
                .unwrap();
            s.main[at + 2] = b'b';
        },
    );
    add(
        "a huge machine name".into(),
        "the machine name's length is",
        None,
        &|s| s.main[9] = 0xff,
    );
    cases
}
