//! Uploaded archives, byte by byte: the first byte chooses zip, tar, or gzip.
#![no_main]

#[path = "support/ground.rs"]
mod ground;

use ground::Ground;
use wire::spec::ArchiveFormat;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((choice, bytes)) = bytes.split_first() else { return };
    let ground = Ground::new();
    match choice % 3 {
        0 => ground.unpack(bytes, ArchiveFormat::Zip),
        1 => ground.unpack(&ground::gzip(bytes), ArchiveFormat::TarGz),
        _ => ground.unpack(bytes, ArchiveFormat::TarGz),
    }
});
