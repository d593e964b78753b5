#!/usr/bin/env python3
"""Reads a snapshot's file out of a store in a folder, by docs/store-format.md alone.

store_reader.py STORE NAME PATH > FILE
"""
import json
import struct
import subprocess
import sys


def unzstd(frames):
    return subprocess.run(["zstd", "-dc"], input=frames, stdout=subprocess.PIPE, check=True).stdout


def manifest(store, name):
    data = open(f"{store}/snapshots/{name}", "rb").read()
    magic, version, head_len, body_len, unpacked = struct.unpack_from("<8sIIII", data)
    assert magic == b"MFDSNAP\0" and version == 1 and len(data) == 24 + head_len + body_len
    head = json.loads(data[24 : 24 + head_len - 32])
    body = unzstd(data[24 + head_len : -32])
    assert head["name"] == name and len(body) == unpacked
    pack_count, chunk_count = struct.unpack_from("<II", body)
    packs = [body[8 + 16 * n : 24 + 16 * n].hex() for n in range(pack_count)]
    at = 8 + 16 * pack_count
    chunks = [struct.unpack_from("<32sIII", body, at + 44 * n) for n in range(chunk_count)]
    at += 44 * chunk_count
    tables = []
    for item in head["objects"]:
        count = -(-item["len"] // head["chunk_size"])
        tables.append(struct.unpack_from(f"<{count}I", body, at))
        at += 4 * count
    assert at == len(body)
    return head, packs, chunks, tables


def contents(store, packs, chunks, table, size, total):
    # Frames are unpacked together: a process for each would take long.
    out, frames, places = bytearray(total), [], []
    for index, entry in enumerate(table):
        if entry:
            _, pack, offset, word = chunks[entry - 1]
            with open(f"{store}/packs/{packs[pack][:2]}/{packs[pack]}", "rb") as file:
                file.seek(offset)
                stored = file.read(word & 0x7FFFFFFF)
            if word >> 31:
                frames.append(stored)
                places.append((index * size, min(size, total - index * size)))
            else:
                out[index * size : index * size + len(stored)] = stored
    plain, at = unzstd(b"".join(frames)) if frames else b"", 0
    for place, length in places:
        out[place : place + length] = plain[at : at + length]
        at += length
    assert at == len(plain) and len(out) == total
    return out


store, name, path = sys.argv[1:]
head, packs, chunks, tables = manifest(store, name)
size, items = head["chunk_size"], zip(head["objects"], tables)
data = [contents(store, packs, chunks, table, size, item["len"]) for item, table in items]
file = next(file for file in head["files"] if file["path"] == path)
out = bytearray(file["len"])
for part in file["parts"]:
    piece = data[part["object"]][part["offset"] : part["offset"] + part["len"]]
    out[part["at"] : part["at"] + part["len"]] = piece
sys.stdout.buffer.write(out)
