// Package wal is the one write-ahead log of a node, shared by all its shards.
package wal
