# Completion of facesyn for fish, written by `facesyn --install-completion`.
function __facesyn_complete
    set -l words (commandline --current-process --tokenize)
    set -l line (commandline --current-process --cut-at-cursor)
    set -l found (env _FACESYN_COMPLETE=fish _FACESYN_LINE="$line" $words[1] 2>/dev/null)
    if test (count $found) -gt 0
        printf '%s\n' $found
    else
        __fish_complete_path (commandline --current-token)
    end
end
complete --command facesyn --no-files --arguments '(__facesyn_complete)'
