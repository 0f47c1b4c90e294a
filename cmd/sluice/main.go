// Command sluice is the message broker and its tools.
package main

import (
	"os"

	"github.com/sluicemq/sluice/internal/cli"
)

func main() { os.Exit(cli.Main(os.Args[1:])) }
