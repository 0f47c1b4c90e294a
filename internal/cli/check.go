package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/sluicemq/sluice/internal/broker"
	"github.com/sluicemq/sluice/internal/vfs"
)

func newCheckCmd() *cobra.Command {
	var data string
	var asJSON bool
	cmd := &cobra.Command{
		Use: "check", Short: "Read a data directory offline and say what is in it and whether it is sound",
		Long: `Read everything in the data directory of a broker that is not running, verify all
checksums, and say what is there and what is in quarantine, by queue. Nothing is
changed. Exit code 1: something is damaged, or was and lies in quarantine.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := broker.Check(vfs.OS(), filepath.Clean(data))
			if err != nil {
				return err
			}
			if asJSON {
				e := json.NewEncoder(cmd.OutOrStdout())
				e.SetIndent("", "  ")
				err = e.Encode(r.Summary())
			} else {
				_, err = fmt.Fprint(cmd.OutOrStdout(), r.Text())
			}
			if err != nil {
				return err
			}
			if !r.Sound() {
				return errors.New("the data directory is damaged")
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().StringVar(&data, "data", "sluice-data", "data directory")
	return cmd
}
