//! Bodies end where docs/HTTP.md says, however their bytes arrive.

use infini_router::proxy::bodies::{
    BodyReader, ChunkedBody, MAX_CHUNK_LINE, request_body, response_body,
};
use infini_router::proxy::heads::{RequestHead, ResponseHead, parse_request_head};
use infini_router::utils::errors::Code;

fn chunked() -> BodyReader {
    BodyReader::Chunked(ChunkedBody::default())
}

/// What the reader makes of the pieces: payload, what is left over, whether there was a fault.
fn read<'a>(
    reader: &mut BodyReader,
    pieces: impl Iterator<Item = &'a [u8]>,
) -> (Vec<u8>, Vec<u8>, bool) {
    let (mut payload, mut rest, mut fault) = (Vec::new(), Vec::new(), false);
    for piece in pieces {
        let mut data = piece.to_vec();
        if reader.is_done() {
            rest.extend(data);
        } else if !fault {
            let fed = reader.feed(&mut data);
            payload.extend_from_slice(&data[fed.payload]);
            rest.extend_from_slice(if reader.is_done() {
                &data[fed.rest..]
            } else {
                b""
            });
            fault = fed.fault.is_some();
        }
    }
    (payload, rest, fault)
}

/// The bytes in pieces of random sizes.
fn cut<'a>(data: &'a [u8], random: &mut fastrand::Rng) -> Vec<&'a [u8]> {
    let mut pieces = Vec::new();
    let mut rest = data;
    while !rest.is_empty() {
        let most = rest.len().min(1 << random.u8(..8));
        let (piece, after) = rest.split_at(random.usize(1..=most));
        pieces.push(piece);
        rest = after;
    }
    pieces
}

#[test]
fn chunks_come_back_whole_wherever_they_are_cut() {
    let mut random = fastrand::Rng::with_seed(1);
    for _ in 0..2000 {
        let mut sent = Vec::new();
        let mut coded = Vec::new();
        for _ in 0..random.usize(..6) {
            let chunk: Vec<u8> = (0..random.usize(1..40)).map(|_| random.u8(..)).collect();
            let extension = random.choice(["", ";a=b", " ; x"]).unwrap();
            coded.extend(format!("{:X}{extension}\r\n", chunk.len()).into_bytes());
            coded.extend_from_slice(&chunk);
            coded.extend_from_slice(b"\r\n");
            sent.extend(chunk);
        }
        coded.extend_from_slice(
            random
                .choice(["0\r\n\r\n", "0\r\nX-T: 1\r\n\r\n"])
                .unwrap()
                .as_bytes(),
        );
        coded.extend_from_slice(b"NEXT");
        let mut reader = chunked();
        let (payload, rest, fault) = read(&mut reader, cut(&coded, &mut random).into_iter());
        assert!(reader.is_done() && !fault);
        assert_eq!((payload, rest), (sent, b"NEXT".to_vec()));
    }
}

#[test]
fn a_sized_body_ends_after_its_bytes() {
    let mut random = fastrand::Rng::with_seed(2);
    for size in 1..60 {
        let data = vec![b'x'; size];
        let sent = [&data[..], b"NEXT"].concat();
        let mut reader = BodyReader::Sized(size as u64);
        let found = read(&mut reader, cut(&sent, &mut random).into_iter());
        assert_eq!(found, (data, b"NEXT".to_vec(), false));
    }
}

#[test]
fn a_malformed_coding_is_a_fault_however_it_arrives() {
    let long_extension = [&b"1;"[..], &[b'a'; 300], b"\r\n"].concat();
    let trailers = [&b"0\r\n"[..], &b"X: 1\r\n".repeat(5000), b"\r\n"].concat();
    let codings: &[&[u8]] = &[
        b"g\r\n",
        b"-1\r\n",
        b"+1\r\n",
        b" 1\r\nx\r\n",
        b"0x1\r\nx\r\n",
        b"1_0\r\n",
        b"\r\n",
        b"1\nx\r\n",
        b"1\r\nxy\r\n",
        b"1\r\nx\n",
        b"1111111111111111\r\n",
        &long_extension,
        &[b'1'; 300],
        b"1;\x00\r\nx\r\n",
        b"0\r\nno field\r\n\r\n",
        &trailers,
    ];
    for coded in codings {
        for step in [1, 7, 100_000] {
            let mut reader = chunked();
            let (_, _, fault) = read(&mut reader, coded.chunks(step));
            assert!(
                fault && !reader.is_done(),
                "{step} {:?}",
                String::from_utf8_lossy(coded)
            );
        }
    }
}

#[test]
fn what_is_wrong_with_a_line_does_not_depend_on_how_it_is_cut() {
    let verdict = |line: &[u8], at: usize| {
        let mut reader = chunked();
        let (one, other) = line.split_at(at);
        let fault = reader.feed(&mut one.to_vec()).fault;
        fault.or_else(|| reader.feed(&mut other.to_vec()).fault)
    };
    for length in MAX_CHUNK_LINE - 6..MAX_CHUNK_LINE + 3 {
        for end in ["\r\n", "\r", "\n", "\rdata\r\n", "aaaaa\n"] {
            let line = format!("1;{}{end}", "a".repeat(length - 2)).into_bytes();
            let whole = verdict(&line, line.len());
            let fine = ["\r\n", "\r"].contains(&end) && length <= MAX_CHUNK_LINE;
            assert_eq!(whole.is_none(), fine, "{length} {end:?}");
            for at in 1..line.len() {
                assert_eq!(verdict(&line, at), whole, "{length} {end:?} cut at {at}");
            }
        }
    }
}

#[test]
fn what_came_before_a_fault_is_not_lost() {
    let (payload, _, fault) = read(&mut chunked(), std::iter::once(&b"3\r\nabc\r\nzz\r\n"[..]));
    assert_eq!((payload.as_slice(), fault), (&b"abc"[..], true));
}

#[test]
fn a_body_without_length_ends_with_its_connection() {
    let mut reader = BodyReader::UntilClose;
    let (payload, _, _) = read(&mut reader, std::iter::once(&b"abc"[..]));
    assert_eq!(payload, b"abc");
    assert!(!reader.is_done());
}

fn head(method: &str, chunked: bool) -> RequestHead {
    let coding = if chunked {
        "Transfer-Encoding: chunked\r\n"
    } else {
        ""
    };
    parse_request_head(format!("{method} / HTTP/1.1\r\nHost: a\r\n{coding}\r\n").as_bytes())
        .unwrap()
}

#[test]
fn a_length_over_the_limit_is_refused_before_reading() {
    let error = request_body(&head("POST", false), Some(11), 10).expect_err("refused");
    assert_eq!(error.code, Code::BodyTooLarge);
    assert!(
        !request_body(&head("POST", false), Some(10), 10)
            .unwrap()
            .is_done()
    );
}

#[test]
fn methods_without_body_get_none() {
    for method in ["GET", "HEAD", "OPTIONS"] {
        assert!(
            request_body(&head(method, false), Some(0), 10)
                .unwrap()
                .is_done()
        );
        assert!(request_body(&head(method, false), Some(1), 10).is_err());
        assert!(request_body(&head(method, true), None, 10).is_err());
    }
}

#[test]
fn some_answers_have_no_body_whatever_they_announce() {
    for (method, status) in [(&b"HEAD"[..], 200), (b"GET", 204), (b"GET", 304)] {
        let answer = ResponseHead {
            status,
            ..ResponseHead::default()
        };
        assert!(response_body(&answer, Some(5), method).is_done());
    }
}
