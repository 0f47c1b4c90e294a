// Package msg is the vocabulary and the one encoding of stored messages. The bytes
// that a publisher's session encodes here once are the Raft payload, the WAL record,
// what a segment stores and what the tail cache holds. It is pure: no I/O, no clock.
//
// # Record: one stored message
//
//	 0 u32 total length, this header included
//	 4 u8  format   5 u8 flags   6 u8 priority   7 u8 zero
//	 8 i64 time of the append at the broker, ms since 1970
//	16 i64 expiry, ms since 1970, 0 = none
//	24 u32 length of annotations
//	28 u16 length of exchange   30 u16 length of key
//	32 u32 length of properties 36 u32 length of body
//	40 exchange, key, annotations, properties, body
//
// # Submission: what one session hands to one shard
//
//	 0 u32 total length
//	 4 u32 CRC-32C of everything from byte 8
//	 8 u32 position of the command section
//	12 u32 number of operations
//	16 u32 CRC-32C of the length, bytes 8 to 15 and the command section
//	20 records, then the command section
//
// Applying reads the command section only, never a record. Messages with the same
// targets form one append operation, so applying costs O(operations). An operation
// names its records by position: contiguous ones by the first alone. The command section
// has a checksum of its own, so that damage to a record costs no settlement and no
// offset.
//
// # Batch: the payload of one Raft entry
//
//	 0 u32 magic   4 u32 parts   8 i64 shard time, ms   16 u64 proposal number
//	24 per part: u64 link, u64 sequence, u32 length, u32 CRC of the part
//	   the parts: submissions
//
// The batch header is covered by the record's payload CRC in the WAL and each part by
// its own, computed where the part was made: no byte is summed twice.
//
// All integers are little endian; "uvarint" is that of encoding/binary.
package msg
